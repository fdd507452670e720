// The flow gate in the forward epilogue: logit = w2 . GELU(W1 LN(o) + b1) + b2 of each row, W1's
// product on the tensor cores.
#pragma once

#include "../common/flow_gate_math.cuh"
#include "mainloop.cuh"

namespace genhoi::cuda::sm90 {

// LN(o) of the thread's two rows as a left operand of wgmma. LN as o scale + shift, not as
// (o - mean) scale: the compiler would keep every difference from the variance in registers.
template <class Element, int DIM>
__device__ __forceinline__ void apply_layer_norm(uint32_t (&x)[DIM / 4], const float (&o)[DIM / 2],
                                                 const GenhoiGate& gate, int dim) {
  const float inverse = reciprocal_fast(dim);
  float scale[2], shift[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < DIM / 2; i++) {
      if (row_of(i) == r) sum += o[i];
    }
    const float mean = quad_sum(sum) * inverse;
#pragma unroll
    for (int i = 0; i < DIM / 2; i++) {
      if (row_of(i) == r && i / 4 * 8 < dim) squares += (o[i] - mean) * (o[i] - mean);
    }
    scale[r] = rsqrtf(quad_sum(squares) * inverse + kGateNormEps);
    shift[r] = -mean * scale[r];
  }
#pragma unroll
  for (int n = 0; n < DIM / 8; n++) {
    const int column = n * 8 + 2 * (threadIdx.x % 4);
    float2 weight{0.0f, 0.0f}, bias{0.0f, 0.0f};
    if (n * 8 < dim) {
      weight = *reinterpret_cast<const float2*>(gate.norm_weight + column);
      bias = *reinterpret_cast<const float2*>(gate.norm_bias + column);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float* of_row = o + 4 * n + 2 * r;
      x[2 * n + r] = Element::pack(fmaf(fmaf(of_row[0], scale[r], shift[r]), weight.x, bias.x),
                                   fmaf(fmaf(of_row[1], scale[r], shift[r]), weight.y, bias.y));
    }
  }
}

// Computes the logits of the thread's two rows, in all four lanes of a row. block: the number of
// W1's place in the ring of keys.
template <class Element, int DIM>
__device__ __forceinline__ void compute_gate_logits(float (&logits)[2],
                                                    const FwdConsumer<Element, DIM>& consumer,
                                                    float (&o)[DIM / 2], int block) {
  using Traits = FwdTraits<DIM>;
  const GenhoiGate& gate = consumer.in.gate;
  const int hidden = consumer.in.head_dim / 2;
  uint32_t x[DIM / 4];
  float u[Traits::kHidden / 2];
  apply_layer_norm<Element, DIM>(x, o, gate, consumer.in.head_dim);
  consumer.barriers.wait(kFirstRing, block);
  wgmma_fence(o);
  const MatrixDescriptor<DIM> w1(consumer.keys_at(block));
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    const uint64_t b = w1.at(SwizzledTile<DIM>::columns(step, Traits::kGateSlab));
    if (step == 0) {
      Wgmma<Element, Traits::kHidden>::template rs<true, false>(u, x + 4 * step, b);
    } else {
      Wgmma<Element, Traits::kHidden>::template rs<false, false>(u, x + 4 * step, b);
    }
  }
  wgmma_commit();
  wgmma_wait<0>(u);
  keep(x);
  logits[0] = logits[1] = 0.0f;
#pragma unroll
  for (int i = 0; i < Traits::kHidden / 2; i++) {
    const int unit = i / 4 * 8 + 2 * (threadIdx.x % 4) + i % 2;
    if (unit < hidden)
      logits[row_of(i)] += gelu(u[i] + gate.fc1_bias[unit]) * gate.fc2_weight[unit];
  }
#pragma unroll
  for (int r = 0; r < 2; r++) logits[r] = quad_sum(logits[r]) + gate.fc2_bias[0];
}

// Stores the sum of the tile's logits, in a fixed order: each warp's, then the warps'.
template <class Element, int DIM>
__device__ __forceinline__ void store_gate_sum(float* to, const FwdConsumer<Element, DIM>& consumer,
                                               const float (&logits)[2], int start,
                                               unsigned char* memory) {
  using Traits = FwdTraits<DIM>;
  constexpr int kWarps = Traits::kConsumers * 4;
  float* sums = reinterpret_cast<float*>(memory + Traits::kGateSums);
  float sum = 0.0f;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int row = start + consumer.group * kGroupRows + row_in_group(r);
    if (row < consumer.in.rows) sum += logits[r];
  }
#pragma unroll
  for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  const int warp = consumer.group * 4 + threadIdx.x % kGroupThreads / 32;
  if (threadIdx.x % 32 == 0) sums[warp] = sum;
  named_barrier_sync(kConsumersBarrier<Traits::kConsumers>, Traits::kConsumers * kGroupThreads);
  if (warp == 0 && threadIdx.x % 32 == 0) {
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kWarps; i++) sum += sums[i];
    *to = sum;
  }
}

// Gates rows where each has its own gate, or stores the sum of the tile's logits.
template <class Element, int DIM>
__device__ __forceinline__ void apply_flow_gate(float (&o)[DIM / 2],
                                                const FwdConsumer<Element, DIM>& consumer,
                                                const GenhoiForward& call, unsigned char* memory,
                                                int block, int64_t head, int start) {
  float logits[2];
  compute_gate_logits(logits, consumer, o, block);
  if (call.in.gate_mode == GENHOI_GATE_SUM) {
    float* to = call.gate_sums + head * gridDim.x + blockIdx.x;
    store_gate_sum(to, consumer, logits, start, memory);
  } else {
    const float gates[2] = {sigmoid(logits[0]), sigmoid(logits[1])};
    scale_rows(o, gates);
  }
}

}  // namespace genhoi::cuda::sm90
