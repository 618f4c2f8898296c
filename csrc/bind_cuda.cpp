// SPDX-License-Identifier: MIT
// The Python module _mixfast_cuda: the CUDA kernels, called with addresses and sizes.
#include <pybind11/pybind11.h>

void bind_masked_upsample_pool(pybind11::module_& m);
void bind_multi_queue_infonce(pybind11::module_& m);
void bind_split_batch_norm(pybind11::module_& m);

PYBIND11_MODULE(_mixfast_cuda, m) {
  m.attr("ABI") = 10;  // equals ABI in mixfast/ops/_native.py; raised with any signature
  m.attr("archs") = MIXFAST_CUDA_ARCHS;
  bind_masked_upsample_pool(m);
  bind_multi_queue_infonce(m);
  bind_split_batch_norm(m);
}
