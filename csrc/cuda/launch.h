// The CUDA kernels as plain C functions: no torch, no C++ types, no host synchronisation.
//
// They are in a library of their own, which csrc/cuda/binding.cpp opens where torch has CUDA. Each
// launcher enqueues its kernels on `stream` (a cudaStream_t) of the current device and returns a
// cudaError_t as int; 0 is success. A launcher can be captured into a CUDA graph. Shapes and
// strides are those of docs/op.md: tokens are [batch, tokens, heads, head_dim] in 16 bits with any
// strides but the last, which is 1; what is written is contiguous unless it has strides of its own.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// float32 is for genhoi_norm_rope_* only.
enum GenhoiDtype { GENHOI_BFLOAT16 = 0, GENHOI_FLOAT16 = 1, GENHOI_FLOAT32 = 2 };
enum GenhoiGateMode { GENHOI_GATE_NONE = 0, GENHOI_GATE_TOKEN = 1, GENHOI_GATE_SUM = 2 };

// Tokens [batch, tokens, heads, head_dim]; strides in values. A batch stride of 0 repeats a sample.
struct GenhoiTokens {
  void* data;
  int64_t batch, token, head;
};

// Of a flow gate, contiguous. fc1_weight is in the tokens' dtype, the rest in float32.
struct GenhoiGate {
  const float *norm_weight, *norm_bias;
  const void* fc1_weight;
  const float *fc1_bias, *fc2_weight, *fc2_bias;
};

// What forward and backward are given. q, k and k_ref are rotated already; a negative scale is
// taken by the caller, who negates q.
struct GenhoiAttention {
  int32_t dtype;  // GenhoiDtype
  int32_t batch, heads, head_dim;
  int32_t rows, keys, ref_tokens;  // N, Nk, M; each below 2^31
  int32_t references;              // R
  float scale;
  struct GenhoiTokens q, k, v, k_ref, v_ref;
  const int32_t* segments;   // [R + 1]: where each reference starts and ends among the M tokens
  const float* ref_bias;     // [R], or null
  const int32_t* bits;       // [batch or 1, N]: which references a row sees, or null: all of them
  int64_t bits_batch;        // 0 repeats
  const int32_t* tile_bits;  // [batch or 1, ceil(N / 64)]: the OR of 64 rows' bits; with bits
  int64_t tile_bits_batch;
  int32_t gate_mode;  // GenhoiGateMode
  struct GenhoiGate gate;
};

// out [B, N, H, D]; ungated, the same before the gate, or null; lse [B, H, N]; gate_sums
// [B, H, tiles]: the gate logits' sum of each of the `tiles` = plan.grid[0] tiles of rows, with
// GENHOI_GATE_SUM, else null.
struct GenhoiForward {
  struct GenhoiAttention in;
  void* out;
  void* ungated;
  float* lse;
  float* gate_sums;
};

// Grid, block and dynamic shared memory (bytes) of a launch.
struct GenhoiPlan {
  uint32_t grid[3], block, shared;
};

// What a launcher's error means.
const char* genhoi_error_string(int error);

int genhoi_attention_forward(const struct GenhoiForward* call, void* stream);
int genhoi_attention_forward_plan(const struct GenhoiForward* call, struct GenhoiPlan* plan);

// What backward is given besides, and what it writes. out, dout: the attention before the gate and
// its gradient, [B, N, H, D]; out is read by genhoi_attention_backward_preprocess only, which
// writes delta. lse, dlse (or null) and delta: [B, H, N]. The gradients are contiguous, of the
// shapes of q, k, v, k_ref and v_ref; dq, dk with dv, and dk_ref with dv_ref may be null, and are
// not computed then. Tokens start at multiples of 16 bytes, as do their strides.
struct GenhoiBackward {
  struct GenhoiAttention in;
  struct GenhoiTokens out, dout;
  const float *lse, *dlse;
  float* delta;
  void *dq, *dk, *dv;
  int32_t ref_batch;      // 1: all samples share the references, whose gradients are sums over them
  void *dk_ref, *dv_ref;  // null without references
  float* dref_bias;       // [R], or null; with dk_ref
  float* bias_parts;      // scratch [ref_batch, H, grid[0] of GENHOI_BWD_REF_DKDV], with dref_bias
  // Scratch of genhoi_attention_backward_scratch's sizes, at multiples of 16 bytes; or both null.
  float* dq_sums;
  int32_t* dq_counters;
};

// The kernels of backward. Those of keys and values are launched once for the video's and once for
// the references'.
enum GenhoiBackwardKernel {
  GENHOI_BWD_PREPROCESS = 0,  // delta
  GENHOI_BWD_DQ = 1,
  GENHOI_BWD_DKDV = 2,
  GENHOI_BWD_REF_DKDV = 3,
  GENHOI_BWD_DBIAS = 4,
  GENHOI_BWD_SWEEP = 5,  // dK and dV of the video, and of dQ what GENHOI_BWD_DQ starts from
};

// delta = dout . out - dlse; then the gradients of everything, from delta. Above head dim 64 blocks
// take up to 161 KB of shared memory, which sm_80, sm_90 and sm_100 have; others refuse the launch.
int genhoi_attention_backward_preprocess(const struct GenhoiBackward* call, void* stream);
int genhoi_attention_backward(const struct GenhoiBackward* call, void* stream);
// How many values dq_sums and dq_counters must have for dQ, dK and dV of the video to come from one
// sweep over its keys; zeros where there is no such kernel, or not all of them are wanted.
// is_faster: than without, by the call's shape and the current GPU.
struct GenhoiScratch {
  int64_t dq_sums, dq_counters;
  int32_t is_faster;
};
int genhoi_attention_backward_scratch(const struct GenhoiBackward* call,
                                      struct GenhoiScratch* scratch);
// `kernel`: a GenhoiBackwardKernel. One that has nothing to do has a grid of 0.
int genhoi_attention_backward_plan(const struct GenhoiBackward* call, int kernel,
                                   struct GenhoiPlan* plan);

// Backward through the flow gate. Of `in`, dtype, batch, heads, head_dim, rows, gate_mode and gate
// are read. Writes dO to grad, [B, N, H, D] and contiguous, and delta [B, H, N]; and sums over the
// rows of each of `parts` = plan.grid[0] blocks, which the caller adds up:
// du_x [parts, D / 2, D], dfc1_bias and dfc2_weight [parts, D / 2], dfc2_bias [parts]. With
// x = (o - mean) / std and S the sum of du_x = du x^T: dW1 = S gamma + db1 beta^T (gamma for each
// column), dgamma = the columns' sums of W1 S (number by number), dbeta = W1^T db1.
struct GenhoiFlowGateBackward {
  struct GenhoiAttention in;
  struct GenhoiTokens out, dout;  // out: before the gate
  const float* dlse;              // [B, H, N], or null
  const float* dgate_sum;         // [B, H], with GENHOI_GATE_SUM
  void* grad;
  float *delta, *du_x, *dfc1_bias, *dfc2_weight, *dfc2_bias;
};

int genhoi_flow_gate_backward(const struct GenhoiFlowGateBackward* call, void* stream);
int genhoi_flow_gate_backward_plan(const struct GenhoiFlowGateBackward* call,
                                   struct GenhoiPlan* plan);

// Angles of a rotation on three axes. A head's D / 2 pairs belong to the frame's, the row's and the
// column's angles in turn: D / 6 to the row's and the column's each, the others to the frame's. A
// frame below 0 says that the token turns per head: in head h it is ~frame + h.
struct GenhoiAngles {
  const float *cosines, *sines;  // the axes' tables [positions, pairs], one after another
  const int32_t* places;         // [tokens, 3]: frame, row and column of each token
  int32_t row_table, col_table;  // where the row's and the column's tables start, in values
};

// RMS norm over all heads and rotation of x: y = R (x weight / sqrt(mean(x^2) + eps)). heads *
// head_dim is a multiple of 8, of at most kMaxTokenValues (norm_rope_traits.h); head_dim is even.
// Fastest with head dims that 8 divides, and data and strides of multiples of 16 bytes.
struct GenhoiNormRope {
  int32_t dtype;  // GenhoiDtype of x and y
  int32_t batch, tokens, heads, head_dim;
  float eps;
  struct GenhoiTokens x;
  const float* weight;  // [heads, head_dim], or null: rotation alone
  struct GenhoiAngles angles;
  int32_t inverse;  // rotates back
  void* y;          // [batch, tokens, heads, head_dim], contiguous, at a multiple of 16 bytes
};

// Gradients, with grad that of y. Of `in`, y and inverse are not read, and there is a weight.
struct GenhoiNormRopeBackward {
  struct GenhoiNormRope in;
  struct GenhoiTokens grad;
  void* grad_x;        // as y
  float* grad_weight;  // [heads, head_dim]
  float* partials;     // [grid[0] of the plan, heads, head_dim], at a multiple of 16 bytes
};

// A plan's grid has a 0 where there is nothing to do. That of backward is its first launch; its
// second adds up the partial sums.
int genhoi_norm_rope_forward(const struct GenhoiNormRope* call, void* stream);
int genhoi_norm_rope_forward_plan(const struct GenhoiNormRope* call, struct GenhoiPlan* plan);
int genhoi_norm_rope_backward(const struct GenhoiNormRopeBackward* call, void* stream);
int genhoi_norm_rope_backward_plan(const struct GenhoiNormRopeBackward* call,
                                   struct GenhoiPlan* plan);

#ifdef __cplusplus
}
#endif
