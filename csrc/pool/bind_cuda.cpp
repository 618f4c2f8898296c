// SPDX-License-Identifier: MIT
// masked_upsample_pool on CUDA, for Python: addresses and sizes, which mixfast/ops/pool/gpu_cuda.py has checked, with a
// device and a stream.
#include <stdexcept>
#include <string>

#include "pool/bind.h"
#include "pool/cuda.h"

namespace {

namespace py = pybind11;
using namespace mixfast;

void raise_if(const char* error) {
  if (error) throw std::runtime_error(std::string("masked_upsample_pool: CUDA says: ") + error);
}

gpu::Place place(int device, int64_t stream) { return {device, pointer(stream)}; }

void pool_regions_(const MapsTuple& maps, int64_t features, const RegionsTuple& regions, int64_t sums, int64_t weights,
                   int64_t inside, int64_t outside, int device, int64_t stream) {
  raise_if(gpu::pool_regions(place(device, stream), maps_of(maps), pointer(features), regions_of(regions),
                             pointer(sums), pointer(weights), pointer(inside), pointer(outside)));
}

void region_weights_(const RegionsTuple& regions, int64_t h, int64_t w, bool wide, int64_t sums, int64_t weights,
                     int device, int64_t stream) {
  raise_if(
      gpu::region_weights(place(device, stream), regions_of(regions), h, w, wide, pointer(sums), pointer(weights)));
}

void pool_weights_(const MapsTuple& maps, int64_t features, int64_t images, int64_t weights, int64_t inside,
                   int64_t outside, int device, int64_t stream) {
  raise_if(gpu::pool_weights(place(device, stream), maps_of(maps), pointer(features), images, pointer(weights),
                             pointer(inside), pointer(outside)));
}

void spread_weights_(const MapsTuple& maps, int64_t grad_inside, int64_t grad_outside, int64_t images, int64_t weights,
                     int64_t grad_features, int device, int64_t stream) {
  raise_if(gpu::spread_weights(place(device, stream), maps_of(maps), pointer(grad_inside), pointer(grad_outside),
                               images, pointer(weights), pointer(grad_features)));
}

}  // namespace

void bind_masked_upsample_pool(py::module_& m) {
  m.def("pool_regions", &pool_regions_);
  m.def("region_weights", &region_weights_);
  m.def("pool_weights", &pool_weights_);
  m.def("spread_weights", &spread_weights_);
}
