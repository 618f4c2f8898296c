// SPDX-License-Identifier: MIT
// masked_upsample_pool on CPU, for Python: addresses and sizes, which mixfast/ops/pool/cpu_native.py has checked.
#include "pool/bind.h"

namespace {

namespace py = pybind11;
using namespace mixfast;

// Both return whether all regions are valid.
bool pool_regions_(const MapsTuple& maps, int64_t features, const RegionsTuple& regions, int64_t weights,
                   int64_t inside, int64_t outside, int threads) {
  const py::gil_scoped_release release;
  return pool_regions(maps_of(maps), pointer(features), regions_of(regions), pointer(weights), pointer(inside),
                      pointer(outside), threads);
}

bool region_weights_(const RegionsTuple& regions, int64_t h, int64_t w, bool wide, int64_t weights, int threads) {
  const py::gil_scoped_release release;
  return region_weights(regions_of(regions), h, w, wide, pointer(weights), threads);
}

void pool_weights_(const MapsTuple& maps, int64_t features, int64_t images, int64_t weights, int64_t inside,
                   int64_t outside, int threads) {
  const py::gil_scoped_release release;
  pool_weights(maps_of(maps), pointer(features), images, pointer(weights), pointer(inside), pointer(outside), threads);
}

void spread_weights_(const MapsTuple& maps, int64_t grad_inside, int64_t grad_outside, int64_t images, int64_t weights,
                     int64_t grad_features, int threads) {
  const py::gil_scoped_release release;
  spread_weights(maps_of(maps), pointer(grad_inside), pointer(grad_outside), images, pointer(weights),
                 pointer(grad_features), threads);
}

}  // namespace

void bind_masked_upsample_pool(py::module_& m) {
  m.def("pool_regions", &pool_regions_);
  m.def("region_weights", &region_weights_);
  m.def("pool_weights", &pool_weights_);
  m.def("spread_weights", &spread_weights_);
}
