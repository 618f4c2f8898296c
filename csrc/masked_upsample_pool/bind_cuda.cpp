// SPDX-License-Identifier: MIT
// masked_upsample_pool on CUDA, for Python: pointers and sizes, which mixfast/ops/masked_upsample_pool/gpu_cuda.py has
// checked. The arguments are those of bind_cpu.cpp, with a device and a stream for the threads.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "masked_upsample_pool/bind.h"
#include "masked_upsample_pool/cuda.h"

namespace {

void raise_if(const char* error) {
  if (error) throw std::runtime_error(std::string("masked_upsample_pool: CUDA says: ") + error);
}

void region_weights(Pointer data, int64_t images, int64_t height, int64_t width, int mask_dtype, int64_t h, int64_t w,
                    bool wide, Pointer sums, Pointer weights, int device, Pointer stream) {
  raise_if(mixfast::gpu::region_weights({device, pointer(stream)}, regions(data, images, height, width, mask_dtype), h,
                                        w, wide, pointer(sums), pointer(weights)));
}

void pool_regions(int64_t batch, int64_t channels, int64_t h, int64_t w, int dtype, bool channels_last,
                  Pointer features, Pointer data, int64_t images, int64_t height, int64_t width, int mask_dtype,
                  Pointer sums, Pointer weights, Pointer inside, Pointer outside, int device, Pointer stream) {
  raise_if(mixfast::gpu::pool_regions({device, pointer(stream)}, maps(batch, channels, h, w, dtype, channels_last),
                                      pointer(features), regions(data, images, height, width, mask_dtype),
                                      pointer(sums), pointer(weights), pointer(inside), pointer(outside)));
}

void pool_weights(int64_t batch, int64_t channels, int64_t h, int64_t w, int dtype, bool channels_last,
                  Pointer features, int64_t images, Pointer weights, Pointer inside, Pointer outside, int device,
                  Pointer stream) {
  raise_if(mixfast::gpu::pool_weights({device, pointer(stream)}, maps(batch, channels, h, w, dtype, channels_last),
                                      pointer(features), images, pointer(weights), pointer(inside), pointer(outside)));
}

void spread_weights(int64_t batch, int64_t channels, int64_t h, int64_t w, int dtype, bool channels_last,
                    Pointer grad_inside, Pointer grad_outside, int64_t images, Pointer weights, Pointer grad_features,
                    int device, Pointer stream) {
  raise_if(mixfast::gpu::spread_weights({device, pointer(stream)}, maps(batch, channels, h, w, dtype, channels_last),
                                        pointer(grad_inside), pointer(grad_outside), images, pointer(weights),
                                        pointer(grad_features)));
}

}  // namespace

void bind_masked_upsample_pool(pybind11::module_& m) {
  m.def("region_weights", &region_weights);
  m.def("pool_regions", &pool_regions);
  m.def("pool_weights", &pool_weights);
  m.def("spread_weights", &spread_weights);
}
