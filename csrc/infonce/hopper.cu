// SPDX-License-Identifier: MIT
// multi_queue_infonce on sm_90a, for which alone this file is compiled: the launch of its main kernel. cuda.cu does the
// rest, and finds hopper_launch null in a build without this file.
// Copies    by TMA and tensor maps: only they write the swizzled tiles that wgmma reads (cp.async.bulk keeps the order
//           of memory), and they fill with zeros what lies outside a queue
// Driver    the one function needed, which encodes maps, is asked for through the runtime when it is first called: the
//           module loads where there is no driver
#include <cuda.h>

#include "infonce/hopper.h"
#include "infonce/hopper_partials.cuh"

namespace mixfast::gpu::infonce {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  constexpr unsigned kSince = 12000;  // the version of the driver's interface
  const auto error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, kSince, cudaEnableDefault, &result);
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : nullptr;
}

// The requirements are those of hopper_takes and of the driver's documentation: addresses and strides in 16 bytes.
cudaError_t encode_maps(const Call& call, const Tiling& tiling, Maps* maps) {
  static const Encode encode = find_encode();
  if (encode == nullptr) return cudaErrorNotSupported;
  const auto type = call.key_type == Type::kHalf ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  for (int q = 0; q < call.queue_count; ++q) {
    const QueueOf& queue = call.queues[q];
    const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(call.dim), static_cast<cuuint64_t>(queue.count)};
    const cuuint64_t stride = static_cast<cuuint64_t>(queue.row_stride) * 2;
    const cuuint32_t box[2] = {kPanel, static_cast<cuuint32_t>(tiling.keys)}, every[2] = {1, 1};
    const CUresult result = encode(maps->keys + q, type, 2, const_cast<void*>(queue.keys), sizes, &stride, box, every,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

template <Factors kFactors, int kDim>
cudaError_t launch_kernel(const Call& call, int units, cudaStream_t stream) {
  constexpr Tiling kTiling = kHopperTilingOf<kDim>;
  Maps maps;
  const cudaError_t error = encode_maps(call, kTiling, &maps);
  if (error != cudaSuccess) return error;
  const auto kernel =
      call.grads == nullptr ? hopper_partials<kFactors, kDim, false> : hopper_partials<kFactors, kDim, true>;
  return launch(kernel, units, kTiling.threads, kTiling.shared_bytes, stream, call, maps);
}

template <Factors kFactors>
cudaError_t launch_kernel(const Call& call, int units, cudaStream_t stream) {
  if (call.padded_dim == 64) return launch_kernel<kFactors, 64>(call, units, stream);
  if (call.padded_dim == 128) return launch_kernel<kFactors, 128>(call, units, stream);
  return launch_kernel<kFactors, 256>(call, units, stream);
}

cudaError_t launch_any(Factors factors, const Call& call, int units, cudaStream_t stream) {
  return factors == Factors::kHalf ? launch_kernel<Factors::kHalf>(call, units, stream)
                                   : launch_kernel<Factors::kBFloat16>(call, units, stream);
}

[[maybe_unused]] const bool kRegistered = (hopper_launch = launch_any, true);

}  // namespace
}  // namespace mixfast::gpu::infonce
