// Attention forward on tensor cores (sm_80 and later): docs/op.md, "Forward".
//
// A block of four warps takes kQueries rows of one head. From top to bottom: load, multiply and
// softmax with the video's keys, then with those of the references that one of its rows sees,
// normalise, gate, store. Two blocks share an SM: one multiplies while the other is at its softmax.
#pragma once

#include "gate.cuh"
#include "keys.cuh"
#include "launch.h"
#include "rows.cuh"

namespace genhoi::cuda {

template <int DIM>
constexpr uint32_t forward_shared_bytes() {
  return (kQueries + 2 * kKeys) * Tile<DIM>::kRowBytes;
}

// Whether some row of the tile sees reference `segment`.
__device__ __forceinline__ bool tile_sees(const GenhoiAttention& in, int b, int start,
                                          int segment) {
  if (in.bits == nullptr) return true;
  asm("" : "+r"(start) : "r"(segment));  // else the address is kept from before the loop
  const int32_t* flags = in.tile_bits + b * in.tile_bits_batch + start / 64;
  return (flags[0] | (start + 64 < in.rows ? flags[1] : 0)) >> segment & 1;
}

// What whole blocks of video keys leave over, and the references.
template <class Half, int DIM>
__device__ __forceinline__ void attend_rest(RowState<DIM>& rows, const LaneTile<DIM>& q,
                                            uint32_t k_tile, float factor,
                                            const GenhoiAttention& in, int b, int h, int start) {
  using Value = typename Half::Value;
  for (int segment = -1; segment < (in.ref_tokens > 0 ? in.references : 0); segment++) {
    KeyRange<Value> range{};
    int first = in.keys / kKeys * kKeys;
    if (segment < 0) {
      range = {head_of<Value>(in.k, b, h),
               head_of<Value>(in.v, b, h),
               in.k.token,
               in.v.token,
               in.keys - first,
               0.0f,
               15};
    } else {
      if (!tile_sees(in, b, start, segment)) continue;
      first = in.segments[segment];
      const float bias = bias_to_log2(in, segment);
      range = {head_of<Value>(in.k_ref, b, h),
               head_of<Value>(in.v_ref, b, h),
               in.k_ref.token,
               in.v_ref.token,
               in.segments[segment + 1] - first,
               bias,
               rows_that_see(in, b, start, segment)};
    }
    if (range.count == 0) continue;
    range.k += first * range.k_stride;
    range.v += first * range.v_stride;
    attend<Half, DIM, true>(rows, q, k_tile, in.head_dim, factor, range);
  }
}

// O = sum / total, in place, and lse. A row without any key: O = 0, lse = -inf.
template <int DIM>
__device__ __forceinline__ void normalise_rows(RowState<DIM>& rows, const GenhoiForward& call,
                                               int64_t head, int start) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float total = row_sum(rows.total[i][r]);
      const float inverse = total == 0.0f ? 0.0f : reciprocal_fast(total);
#pragma unroll
      for (int n = 0; n < DIM / 8; n++) {
        rows.sum[i][n][2 * r] *= inverse;
        rows.sum[i][n][2 * r + 1] *= inverse;
      }
      const int row = start + row_in_tile(i, r);
      if (threadIdx.x % 4 == 0 && row < call.in.rows) {
        call.lse[head * call.in.rows + row] = (rows.highest[i][r] + log2_fast(total)) * kLn2;
      }
    }
  }
}

// A warp's rows to out [B, N, H, D], by way of its own rows of the queries' tile, so that memory is
// written 16 bytes at a time.
template <class Half, int DIM>
__device__ __forceinline__ void store_rows(void* out, const float (&o)[2][DIM / 8][4],
                                           unsigned char* tile, const GenhoiAttention& in, int b,
                                           int h, int start) {
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * kWarpRows;
  const RowWriter<DIM> writer(shared_address(tile), 0);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < DIM / 8; n++) {
#pragma unroll
    for (int at = 0; at < 4; at++) {
      const int i = at / 2, r = at % 2;
      writer.put(i, r, n, Half::pack(o[i][n][2 * r], o[i][n][2 * r + 1]));
    }
  }
  __syncwarp();
  auto* to = static_cast<typename Half::Value*>(out);
  for (int at = lane; at < kWarpRows * (DIM / kChunk); at += 32) {
    const int row = first + at / (DIM / kChunk), chunk = at % (DIM / kChunk);
    if (start + row >= in.rows || chunk * kChunk >= in.head_dim) continue;
    const int64_t token = static_cast<int64_t>(b) * in.rows + start + row;
    *reinterpret_cast<uint4*>(to + (token * in.heads + h) * in.head_dim + chunk * kChunk) =
        *reinterpret_cast<const uint4*>(tile + Tile<DIM>::address(0, row, chunk));
  }
}

// The sum of the tile's gate logits, in a fixed order.
__device__ __forceinline__ void store_gate_sum(float* to, const float (&logits)[2][2], int start,
                                               int rows, float* scratch) {
  float sum = 0.0f;
#pragma unroll
  for (int at = 0; at < 4; at++) {
    if (start + row_in_tile(at / 2, at % 2) < rows) sum += logits[at / 2][at % 2];
  }
#pragma unroll
  for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  __syncthreads();  // W1 is used
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) *to = scratch[0] + scratch[1] + scratch[2] + scratch[3];
}

// Grid: tiles of rows, heads, samples. factor: scale log2 e, for exp2.
template <class Half, int DIM>
__global__ void __launch_bounds__(kThreads, 2)
    attention_forward(const __grid_constant__ GenhoiForward call, float factor) {
  using Value = typename Half::Value;
  extern __shared__ __align__(1024) unsigned char memory[];
  const GenhoiAttention& in = call.in;
  const int start = blockIdx.x * kQueries, h = blockIdx.y, b = blockIdx.z;
  const int64_t head = static_cast<int64_t>(b) * in.heads + h;
  const uint32_t q_tile = shared_address(memory);
  const uint32_t k_tile = q_tile + kQueries * Tile<DIM>::kRowBytes;

  // Load the queries.
  const TileCopy<DIM, kQueries, kThreads> copy(threadIdx.x);
  const Value* first = head_of<Value>(in.q, b, h) + start * in.q.token;
  copy.template copy<true>(q_tile, first, in.q.token, in.head_dim, in.rows - start);
  copies_commit();
  const auto q = LaneTile<DIM>::left(q_tile, threadIdx.x / 32 * kWarpRows);

  // The video's keys, then the references'.
  RowState<DIM> rows;
  rows.clear();
  const KeyRange<Value> video{head_of<Value>(in.k, b, h),
                              head_of<Value>(in.v, b, h),
                              in.k.token,
                              in.v.token,
                              in.keys / kKeys * kKeys,
                              0.0f,
                              15};
  if (video.count > 0) {
    attend<Half, DIM, false>(rows, q, k_tile, in.head_dim, factor, video);
  }
  attend_rest<Half, DIM>(rows, q, k_tile, factor, in, b, h, start);

  normalise_rows(rows, call, head, start);
  copies_wait<0>();  // a tile without any key has not waited for its queries
  __syncthreads();
  if (call.ungated != nullptr)
    store_rows<Half, DIM>(call.ungated, rows.sum, memory, in, b, h, start);

  // The flow gate.
  if (in.gate_mode != GENHOI_GATE_NONE) {
    float logits[2][2];
    gate_logits<Half, DIM>(logits, rows.sum, in.gate, q_tile, k_tile, in.head_dim);
    if (in.gate_mode == GENHOI_GATE_SUM) {
      store_gate_sum(call.gate_sums + head * gridDim.x + blockIdx.x, logits, start, in.rows,
                     reinterpret_cast<float*>(memory + kQueries * Tile<DIM>::kRowBytes));
    } else {
#pragma unroll
      for (int c = 0; c < DIM; c++) {
        rows.sum[c / (DIM / 2)][c % (DIM / 2) / 4][c % 4] *=
            sigmoid(logits[c / (DIM / 2)][c % 4 / 2]);
      }
    }
  }
  store_rows<Half, DIM>(call.out, rows.sum, memory, in, b, h, start);
}

}  // namespace genhoi::cuda
