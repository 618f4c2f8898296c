// SPDX-License-Identifier: MIT
// masked_upsample_pool on CUDA, for Python; on the current stream of the tensors' device.
#include <stdexcept>
#include <string>

#include "pool/bind.h"
#include "pool/cuda.h"

namespace {

using namespace mixfast;
using bind::Tensor;

bool checked(const char* error) {
  if (error) throw std::runtime_error(std::string("masked_upsample_pool: CUDA says: ") + error);
  return true;
}

// What the kernel that folds masks writes and the next one reads (cuda_weights.cuh); nothing for boxes.
Tensor mask_sums(const Regions& regions, const Tensor& weights) {
  if (regions.boxes) return {};
  return bind::empty(weights, {regions.images * 4, weights.size[2], weights.size[3] + 1}, weights.number);
}

struct Cuda {
  static constexpr const char* kName = "cuda";
  static constexpr bind::Kind kKind = bind::Kind::kCuda;
  explicit Cuda(const Tensor& on) : place{on.device, bind::stream(on)} {}

  bool region_weights(const Regions& regions, int64_t h, int64_t w, bool wide, const Tensor& weights) const {
    const Tensor sums = mask_sums(regions, weights);
    return checked(gpu::region_weights(place, regions, h, w, wide, sums.data, weights.data));
  }

  bool pool_regions(const Maps& maps, const void* features, const Regions& regions, const Tensor& weights, void* inside,
                    void* outside) const {
    const Tensor sums = mask_sums(regions, weights);
    return checked(gpu::pool_regions(place, maps, features, regions, sums.data, weights.data, inside, outside));
  }

  void pool_weights(const Maps& maps, const void* features, int64_t images, const void* weights, void* inside,
                    void* outside) const {
    checked(gpu::pool_weights(place, maps, features, images, weights, inside, outside));
  }

  void spread_weights(const Maps& maps, const void* grad_inside, const void* grad_outside, int64_t images,
                      const void* weights, void* grad_features) const {
    checked(gpu::spread_weights(place, maps, grad_inside, grad_outside, images, weights, grad_features));
  }

  gpu::Place place;
};

}  // namespace

void bind_masked_upsample_pool(pybind11::module_& m) { bind::define_masked_upsample_pool<Cuda>(m); }
