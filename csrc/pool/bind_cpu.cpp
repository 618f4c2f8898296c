// SPDX-License-Identifier: MIT
// masked_upsample_pool on CPU, for Python.
#include "pool/bind.h"

namespace {

using namespace mixfast;
using bind::Tensor;
using Release = pybind11::gil_scoped_release;

struct Cpu {
  static constexpr const char* kName = "cpu";
  static constexpr bind::Kind kKind = bind::Kind::kCpu;
  explicit Cpu(const Tensor&) : threads(bind::threads()) {}

  bool region_weights(const Regions& regions, int64_t h, int64_t w, bool wide, const Tensor& weights) const {
    const Release release;
    return mixfast::region_weights(regions, h, w, wide, weights.data, threads);
  }

  bool pool_regions(const Maps& maps, const void* features, const Regions& regions, const Tensor& weights, void* inside,
                    void* outside) const {
    const Release release;
    return mixfast::pool_regions(maps, features, regions, weights.data, inside, outside, threads);
  }

  void pool_weights(const Maps& maps, const void* features, int64_t images, const void* weights, void* inside,
                    void* outside) const {
    const Release release;
    mixfast::pool_weights(maps, features, images, weights, inside, outside, threads);
  }

  void spread_weights(const Maps& maps, const void* grad_inside, const void* grad_outside, int64_t images,
                      const void* weights, void* grad_features) const {
    const Release release;
    mixfast::spread_weights(maps, grad_inside, grad_outside, images, weights, grad_features, threads);
  }

  int threads;
};

}  // namespace

void bind_masked_upsample_pool(pybind11::module_& m) { bind::define_masked_upsample_pool<Cpu>(m); }
