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

enum GenhoiDtype { GENHOI_BFLOAT16 = 0, GENHOI_FLOAT16 = 1 };
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
// [B, H, tiles]: the gate logits' sum of each tile of rows, with GENHOI_GATE_SUM, else null.
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

// Rows of a tile of genhoi_attention_forward: gate_sums has ceil(N / rows) columns.
#define GENHOI_FORWARD_ROWS 128

int genhoi_attention_forward(const struct GenhoiForward* call, void* stream);
int genhoi_attention_forward_plan(const struct GenhoiForward* call, struct GenhoiPlan* plan);

#ifdef __cplusplus
}
#endif
