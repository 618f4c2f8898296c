// SPDX-License-Identifier: MIT
// masked_upsample_pool on CPU, for Python: pointers and sizes, which mixfast/ops/masked_upsample_pool/cpu_native.py
// has checked.
#include <pybind11/pybind11.h>

#include "masked_upsample_pool/bind.h"
#include "masked_upsample_pool/cpu.h"

namespace {

bool region_weights(Pointer data, int64_t images, int64_t height, int64_t width, int mask_dtype, int64_t h, int64_t w,
                    bool wide, Pointer weights, int threads) {
  pybind11::gil_scoped_release release;
  return mixfast::region_weights(regions(data, images, height, width, mask_dtype), h, w, wide, pointer(weights),
                                 threads);
}

bool pool_regions(int64_t batch, int64_t channels, int64_t h, int64_t w, int dtype, bool channels_last,
                  Pointer features, Pointer data, int64_t images, int64_t height, int64_t width, int mask_dtype,
                  Pointer weights, Pointer inside, Pointer outside, int threads) {
  pybind11::gil_scoped_release release;
  return mixfast::pool_regions(maps(batch, channels, h, w, dtype, channels_last), pointer(features),
                               regions(data, images, height, width, mask_dtype), pointer(weights), pointer(inside),
                               pointer(outside), threads);
}

void pool_weights(int64_t batch, int64_t channels, int64_t h, int64_t w, int dtype, bool channels_last,
                  Pointer features, int64_t images, Pointer weights, Pointer inside, Pointer outside, int threads) {
  pybind11::gil_scoped_release release;
  mixfast::pool_weights(maps(batch, channels, h, w, dtype, channels_last), pointer(features), images, pointer(weights),
                        pointer(inside), pointer(outside), threads);
}

void spread_weights(int64_t batch, int64_t channels, int64_t h, int64_t w, int dtype, bool channels_last,
                    Pointer grad_inside, Pointer grad_outside, int64_t images, Pointer weights, Pointer grad_features,
                    int threads) {
  pybind11::gil_scoped_release release;
  mixfast::spread_weights(maps(batch, channels, h, w, dtype, channels_last), pointer(grad_inside),
                          pointer(grad_outside), images, pointer(weights), pointer(grad_features), threads);
}

}  // namespace

void bind_masked_upsample_pool(pybind11::module_& m) {
  m.def("region_weights", &region_weights);
  m.def("pool_regions", &pool_regions);
  m.def("pool_weights", &pool_weights);
  m.def("spread_weights", &spread_weights);
}
