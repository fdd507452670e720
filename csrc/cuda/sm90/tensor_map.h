// Tensor maps: how TMA finds a box of tokens. A map is made on the host of a pointer, sizes and
// strides, and passed to the kernel by value: nothing is read from the GPU, no one waits for it,
// and the launch can be captured into a CUDA graph.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <initializer_list>

#include "../launch.h"
#include "traits.h"

namespace genhoi::cuda::sm90 {

// Tokens [samples, count, heads, dim] in 16 bits.
struct TokenTensor {
  GenhoiTokens tokens;
  int64_t count;
  int heads, dim, samples;
};

// Whether TMA can read and write them: all starts at multiples of 16 bytes.
inline bool takes_tensor_map(const GenhoiTokens& x) {
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.token % 8 == 0 && x.head % 8 == 0 &&
         x.batch % 8 == 0;
}

// The driver's encoder, found at run time: the library is not linked with the driver's. Null where
// the driver is older than Hopper.
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const auto encoder = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                               12000, cudaEnableDefault, &result);
    const bool is_there = error == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(is_there ? found : nullptr);
  }();
  return encoder;
}

// Makes the map of boxes of so many tokens and a slab's columns.
template <int DIM>
cudaError_t make_tensor_map(CUtensorMap& map, const TokenTensor& x, int32_t dtype, int box_tokens) {
  constexpr int kColumns = kSlabColumns<DIM>;
  const auto encode = tensor_map_encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(x.dim), static_cast<cuuint64_t>(x.count),
                              static_cast<cuuint64_t>(x.heads), static_cast<cuuint64_t>(x.samples)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(x.tokens.token) * 2,
                                static_cast<cuuint64_t>(x.tokens.head) * 2,
                                static_cast<cuuint64_t>(x.tokens.batch) * 2};
  const cuuint32_t box[] = {kColumns, static_cast<cuuint32_t>(box_tokens), 1, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  const auto type =
      dtype == GENHOI_BFLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const auto swizzle = kColumns == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  const CUresult result = encode(
      &map, type, 4, x.tokens.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// Makes the maps of a call's tensors one after another; `error` is that of the first that fails.
template <int DIM>
struct TensorMaps {
  const GenhoiAttention& in;
  cudaError_t error = cudaSuccess;

  // Leaves the map alone where there is no token, or no sample: nothing will ask for it.
  void add(CUtensorMap& map, const GenhoiTokens& x, int64_t count, int box_tokens, int samples) {
    const TokenTensor tensor{x, count, in.heads, in.head_dim, x.batch == 0 ? 1 : samples};
    if (error != cudaSuccess || tensor.count == 0 || tensor.samples == 0) return;
    error = make_tensor_map<DIM>(map, tensor, in.dtype, box_tokens);
  }
  void add(CUtensorMap& map, const GenhoiTokens& x, int64_t count, int box_tokens) {
    add(map, x, count, box_tokens, in.batch);
  }
  // Of contiguous tokens, which are written: [samples, count, heads, head_dim].
  void add_result(CUtensorMap& map, void* data, int64_t count, int box_tokens, int samples) {
    const int64_t token = static_cast<int64_t>(in.heads) * in.head_dim;
    const GenhoiTokens x{data, samples == 1 ? 0 : count * token, token, in.head_dim};
    if (data != nullptr) add(map, x, count, box_tokens, samples);
  }
};

}  // namespace genhoi::cuda::sm90
