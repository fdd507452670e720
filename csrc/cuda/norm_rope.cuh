// RMS norm over all heads, and rotation: docs/op.md, "Rotation" and "Backward".
//
// A block of threads has a token, H D values, in registers: memory is read once and written once.
// A thread has kChunksPerThread chunks of eight values (16 bytes, or twice that in float32), chunk
// t, t + threads, ... of the token, so that a warp's accesses are next to each other.
//
// Of kernels with WIDE, all addresses are multiples of 16 bytes and a chunk is within one head. The
// others take any strides and any even head dim, value by value.
#pragma once

#include "common/element.cuh"
#include "launch.h"
#include "norm_rope_traits.h"

namespace genhoi::cuda::norm_rope {

constexpr int kMaxWarps = kMaxThreads / 32;

// Launch bound of the gradient's kernel. More threads than there can be keep it at 128 registers,
// so that three blocks of 160 threads (5120 values) fit a multiprocessor; where it would spill
// then, it may have 168.
template <class Element, bool WIDE>
constexpr int kBwdBound = WIDE && sizeof(typename Element::Value) == 2 ? 512 : kMaxThreads;

struct Float32 {
  using Value = float;
};

// A chunk as memory has it.
template <class Element>
struct Chunk {
  static constexpr int kWords = kChunkValues * sizeof(typename Element::Value) / 16;
  uint4 words[kWords];
};

template <class Element>
__device__ __forceinline__ void unpack(const Chunk<Element>& chunk, float (&values)[kChunkValues]) {
  const uint4 words = chunk.words[0];
  const float2 pairs[4] = {Element::unpack(words.x), Element::unpack(words.y),
                           Element::unpack(words.z), Element::unpack(words.w)};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    values[2 * j] = pairs[j].x;
    values[2 * j + 1] = pairs[j].y;
  }
}
__device__ __forceinline__ void unpack(const Chunk<Float32>& chunk, float (&values)[kChunkValues]) {
#pragma unroll
  for (int j = 0; j < 2; j++) {
    values[4 * j] = __uint_as_float(chunk.words[j].x);
    values[4 * j + 1] = __uint_as_float(chunk.words[j].y);
    values[4 * j + 2] = __uint_as_float(chunk.words[j].z);
    values[4 * j + 3] = __uint_as_float(chunk.words[j].w);
  }
}

template <class Element>
__device__ __forceinline__ void pack(const float (&values)[kChunkValues], Chunk<Element>& chunk) {
  chunk.words[0] =
      make_uint4(Element::pack(values[0], values[1]), Element::pack(values[2], values[3]),
                 Element::pack(values[4], values[5]), Element::pack(values[6], values[7]));
}
__device__ __forceinline__ void pack(const float (&values)[kChunkValues], Chunk<Float32>& chunk) {
#pragma unroll
  for (int j = 0; j < 2; j++) {
    chunk.words[j] =
        make_uint4(__float_as_uint(values[4 * j]), __float_as_uint(values[4 * j + 1]),
                   __float_as_uint(values[4 * j + 2]), __float_as_uint(values[4 * j + 3]));
  }
}

// Where a pair of a token is: value d and the next of a head.
template <bool WIDE>
struct PairPlace {
  int head, d;

  __device__ __forceinline__ PairPlace(int chunk, int head_dim)
      : head(chunk * kChunkValues / head_dim), d(chunk * kChunkValues - head * head_dim) {}

  __device__ __forceinline__ void next(int head_dim) {
    d += 2;
    if (!WIDE && d == head_dim) {
      d = 0;
      head++;
    }
  }
};

// A token's chunk of strided tokens. They are not needed again: L1 is for the tables and weights.
template <bool WIDE, class Element>
__device__ __forceinline__ void load_chunk(const typename Element::Value* token,
                                           int64_t head_stride, int chunk, int head_dim,
                                           Chunk<Element>& to) {
  PairPlace<WIDE> place(chunk, head_dim);
  if constexpr (WIDE) {
    const auto* from = reinterpret_cast<const uint4*>(token + place.head * head_stride + place.d);
#pragma unroll
    for (int j = 0; j < Chunk<Element>::kWords; j++) to.words[j] = __ldcs(from + j);
  } else {
    alignas(16) typename Element::Value values[kChunkValues];
#pragma unroll
    for (int j = 0; j < kChunkValues; j += 2) {
      const auto* from = token + place.head * head_stride + place.d;
      values[j] = from[0];
      values[j + 1] = from[1];
      place.next(head_dim);
    }
#pragma unroll
    for (int j = 0; j < Chunk<Element>::kWords; j++) {
      to.words[j] = reinterpret_cast<const uint4*>(values)[j];
    }
  }
}

// A chunk of contiguous tokens.
template <class Element>
__device__ __forceinline__ void store_chunk(const float (&values)[kChunkValues], int chunk,
                                            typename Element::Value* token) {
  Chunk<Element> packed;
  pack(values, packed);
  auto* to = reinterpret_cast<uint4*>(token + chunk * kChunkValues);
#pragma unroll
  for (int j = 0; j < Chunk<Element>::kWords; j++) to[j] = packed.words[j];
}

template <bool WIDE>
__device__ __forceinline__ void load_weight(const float* weight, int chunk,
                                            float (&values)[kChunkValues]) {
  const float* from = weight + chunk * kChunkValues;
  if constexpr (WIDE) {
#pragma unroll
    for (int j = 0; j < kChunkValues; j += 4) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(from + j));
      values[j] = four.x, values[j + 1] = four.y, values[j + 2] = four.z, values[j + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int j = 0; j < kChunkValues; j++) values[j] = __ldg(from + j);
  }
}

// Angles of a token: where in the tables those of its frame, row and column begin, each less the
// number of the axis' first pair; and how far the frame's move from head to head.
struct TokenAngles {
  const GenhoiAngles& tables;
  int temporal, spatial;  // pairs of the frame's axis and of each of the others
  int frame, frame_of_head, row, col;

  __device__ __forceinline__ TokenAngles(const GenhoiAngles& tables, int token, int head_dim)
      : tables(tables), spatial(head_dim / 6) {
    temporal = head_dim / 2 - 2 * spatial;
    const int32_t* place = tables.places + 3 * static_cast<int64_t>(token);
    const int32_t at = __ldg(place);
    frame = (at < 0 ? ~at : at) * temporal;
    frame_of_head = at < 0 ? temporal : 0;
    row = tables.row_table + __ldg(place + 1) * spatial - temporal;
    col = tables.col_table + __ldg(place + 2) * spatial - temporal - spatial;
  }

  __device__ __forceinline__ bool by_head() const { return frame_of_head != 0; }

  // Cosine and sine of a head's pair.
  __device__ __forceinline__ float2 of(int head, int pair) const {
    const int of_head = frame + head * frame_of_head;
    const int start = pair < temporal ? of_head : pair < temporal + spatial ? row : col;
    return make_float2(__ldg(tables.cosines + start + pair), __ldg(tables.sines + start + pair));
  }

  template <bool WIDE>
  __device__ __forceinline__ void load(int chunk, int head_dim, float2 (&angles)[4]) const {
    PairPlace<WIDE> place(chunk, head_dim);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      angles[j] = of(place.head, place.d / 2);
      place.next(head_dim);
    }
  }
};

// By the angles, or back with a sign of -1.
__device__ __forceinline__ void rotate(float (&values)[kChunkValues], const float2 (&angles)[4],
                                       float sign) {
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float real = values[2 * j], imag = values[2 * j + 1], sine = sign * angles[j].y;
    values[2 * j] = real * angles[j].x - imag * sine;
    values[2 * j + 1] = real * sine + imag * angles[j].x;
  }
}

// Sums over the block, for every thread, always in the same order. Two buffers in turn need only
// one barrier a call.
struct BlockSums {
  float2 (&shared)[2][kMaxWarps];
  int turn = 0;

  __device__ __forceinline__ explicit BlockSums(float2 (&shared)[2][kMaxWarps]) : shared(shared) {}

  __device__ __forceinline__ float2 operator()(float2 x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      x.x += __shfl_xor_sync(0xffffffffu, x.x, lanes);
      x.y += __shfl_xor_sync(0xffffffffu, x.y, lanes);
    }
    if (threadIdx.x % 32 == 0) shared[turn][threadIdx.x / 32] = x;
    __syncthreads();
    float2 sums = shared[turn][0];
    for (int warp = 1; warp < blockDim.x / 32; warp++) {
      sums.x += shared[turn][warp].x;
      sums.y += shared[turn][warp].y;
    }
    turn ^= 1;
    return sums;
  }
};

// What the kernels know beside the call.
struct NormRopeShape {
  int chunks;       // of a token
  bool same_pairs;  // all chunks of a thread are the same pairs of a head
};

template <class Element>
__device__ __forceinline__ const typename Element::Value* token_of(const GenhoiTokens& tokens,
                                                                   int64_t sample, int64_t token) {
  return static_cast<const typename Element::Value*>(tokens.data) + sample * tokens.batch +
         token * tokens.token;
}

// y = R (x r weight), with r = 1 / sqrt(mean(x^2) + eps) of each token. A block has one token. (For
// more than two large blocks at a time the compiler would spill, on sm_120.)
template <class Element, bool WIDE>
__global__ __launch_bounds__(kMaxThreads,
                             2) void norm_rope_fwd(const __grid_constant__ GenhoiNormRope call,
                                                   const NormRopeShape shape) {
  __shared__ float2 for_sums[2][kMaxWarps];
  const int sample = blockIdx.x / call.tokens, token = blockIdx.x - sample * call.tokens;
  const int dim = call.head_dim, threads = blockDim.x;
  const TokenAngles token_angles(call.angles, token, dim);
  const bool shared_angles = shape.same_pairs && !token_angles.by_head();

  const auto* from = token_of<Element>(call.x, sample, token);
  Chunk<Element> x[kChunksPerThread];
#pragma unroll
  for (int i = 0; i < kChunksPerThread; i++) {
    const int chunk = threadIdx.x + i * threads;
    if (chunk < shape.chunks) load_chunk<WIDE>(from, call.x.head, chunk, dim, x[i]);
  }
  // The first chunk's angles, here so that they come while the sum is waited for.
  float2 angles[4];
  if (threadIdx.x < shape.chunks) token_angles.load<WIDE>(threadIdx.x, dim, angles);

  float r = 1.f;
  if (call.weight) {
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < kChunksPerThread; i++) {
      float values[kChunkValues];
      if (threadIdx.x + i * threads >= shape.chunks) break;
      unpack(x[i], values);
#pragma unroll
      for (int j = 0; j < kChunkValues; j++) squares += values[j] * values[j];
    }
    squares = BlockSums(for_sums)(make_float2(squares, 0.f)).x;
    r = rsqrtf(squares / (shape.chunks * kChunkValues) + call.eps);
  }

  const float sign = call.inverse ? -1.f : 1.f;
  auto* to = static_cast<typename Element::Value*>(call.y) +
             static_cast<int64_t>(blockIdx.x) * shape.chunks * kChunkValues;
#pragma unroll
  for (int i = 0; i < kChunksPerThread; i++) {
    const int chunk = threadIdx.x + i * threads;
    if (chunk >= shape.chunks) break;
    if (i > 0 && !shared_angles) token_angles.load<WIDE>(chunk, dim, angles);
    float values[kChunkValues];
    unpack(x[i], values);
    if (call.weight) {
      float weight[kChunkValues];
      load_weight<WIDE>(call.weight, chunk, weight);
#pragma unroll
      for (int j = 0; j < kChunkValues; j++) values[j] *= r * weight[j];
    }
    rotate(values, angles, sign);
    store_chunk<Element>(values, chunk, to);
  }
}

// With g = R^-1 grad: dx = r (g weight - x r^2 mean(g weight x)), and dweight = sum of g x r over
// a block's part of the tokens, which it takes one after another.
template <class Element, bool WIDE>
__global__ __launch_bounds__((kBwdBound<Element, WIDE>)) void norm_rope_bwd(
    const __grid_constant__ GenhoiNormRopeBackward call, const NormRopeShape shape) {
  __shared__ float2 for_sums[2][kMaxWarps];
  BlockSums block_sums(for_sums);
  const GenhoiNormRope& in = call.in;
  const int dim = in.head_dim, threads = blockDim.x, values_of_token = shape.chunks * kChunkValues;
  const int64_t rows = static_cast<int64_t>(in.batch) * in.tokens;
  const int first = rows * blockIdx.x / gridDim.x, last = rows * (blockIdx.x + 1) / gridDim.x;
  float dweight[kChunksPerThread][kChunkValues] = {};

  for (int row = first; row < last; row++) {
    const int sample = row / in.tokens, token = row - sample * in.tokens;
    const TokenAngles token_angles(in.angles, token, dim);
    const bool shared_angles = shape.same_pairs && !token_angles.by_head();
    const auto* from = token_of<Element>(in.x, sample, token);
    const auto* grad_from = token_of<Element>(call.grad, sample, token);
    Chunk<Element> x[kChunksPerThread], grad[kChunksPerThread];
#pragma unroll
    for (int i = 0; i < kChunksPerThread; i++) {
      const int chunk = threadIdx.x + i * threads;
      if (chunk >= shape.chunks) break;
      load_chunk<WIDE>(from, in.x.head, chunk, dim, x[i]);
      load_chunk<WIDE>(grad_from, call.grad.head, chunk, dim, grad[i]);
    }

    float g[kChunksPerThread][kChunkValues];
    float2 sums = make_float2(0.f, 0.f);  // of x^2 and of g weight x
    float2 angles[4];
#pragma unroll
    for (int i = 0; i < kChunksPerThread; i++) {
      const int chunk = threadIdx.x + i * threads;
      if (chunk >= shape.chunks) break;
      if (i == 0 || !shared_angles) token_angles.load<WIDE>(chunk, dim, angles);
      unpack(grad[i], g[i]);
      rotate(g[i], angles, -1.f);
      float values[kChunkValues], weight[kChunkValues];
      unpack(x[i], values);
      load_weight<WIDE>(in.weight, chunk, weight);
#pragma unroll
      for (int j = 0; j < kChunkValues; j++) {
        sums.x += values[j] * values[j];
        sums.y += g[i][j] * weight[j] * values[j];
      }
    }
    sums = block_sums(sums);
    const float r = rsqrtf(sums.x / values_of_token + in.eps);
    const float along = r * r * (sums.y / values_of_token);

    auto* to = static_cast<typename Element::Value*>(call.grad_x) +
               static_cast<int64_t>(row) * values_of_token;
#pragma unroll
    for (int i = 0; i < kChunksPerThread; i++) {
      const int chunk = threadIdx.x + i * threads;
      if (chunk >= shape.chunks) break;
      float values[kChunkValues], weight[kChunkValues], dx[kChunkValues];
      unpack(x[i], values);
      load_weight<WIDE>(in.weight, chunk, weight);
#pragma unroll
      for (int j = 0; j < kChunkValues; j++) {
        dweight[i][j] += g[i][j] * (values[j] * r);
        dx[j] = r * (g[i][j] * weight[j] - values[j] * along);
      }
      store_chunk<Element>(dx, chunk, to);
    }
  }

#pragma unroll
  for (int i = 0; i < kChunksPerThread; i++) {
    const int chunk = threadIdx.x + i * threads;
    if (chunk >= shape.chunks) break;
    store_chunk<Float32>(dweight[i], chunk,
                         call.partials + static_cast<int64_t>(blockIdx.x) * values_of_token);
  }
}

constexpr int kColumns = 32, kRows = 8;  // of a block of sum_parts

// The partial sums' sum [values], always in the same order.
__global__ __launch_bounds__(kColumns* kRows) void sum_parts(const float* partials, int parts,
                                                             int values, float* sums) {
  __shared__ float shared[kRows][kColumns];
  const int column = blockIdx.x * kColumns + threadIdx.x % kColumns;
  const int row = threadIdx.x / kColumns;
  float sum = 0.f;
  if (column < values) {
    for (int part = row; part < parts; part += kRows) {
      sum += partials[static_cast<int64_t>(part) * values + column];
    }
  }
  shared[row][threadIdx.x % kColumns] = sum;
  __syncthreads();
  if (row > 0 || column >= values) return;
  for (int other = 1; other < kRows; other++) sum += shared[other][threadIdx.x];
  sums[column] = sum;
}

}  // namespace genhoi::cuda::norm_rope
