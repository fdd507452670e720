// What the kernels are called with: plain structs, no torch. Arguments were checked in Python.
#pragma once

#include <cstdint>

namespace genhoi::cpu {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16 };
enum class GateMode : int32_t { kNone, kToken, kSum };

// A [batch, row, head, D] tensor: strides in elements, D contiguous; batch stride 0 broadcasts.
struct Rows {
  void* data = nullptr;
  int64_t batch = 0, row = 0, head = 0;
};

// Angle tables of three axes, [positions, pairs, (cos, sin)], and each token's position in them. A
// position below 0 in the first says that the token turns per head: in head h it is ~position + h.
struct Rotation {
  const float* axis[3] = {nullptr, nullptr, nullptr};
  int64_t pairs[3] = {0, 0, 0};
  const int32_t* index = nullptr;  // [tokens, 3]
};

struct Gate {
  const float *norm_weight, *norm_bias;  // [D]
  const float *fc1_weight, *fc1_bias;    // [hidden, D], [hidden]
  const float *fc2_weight, *fc2_bias;    // [hidden], [1]
};

struct GateGrad {
  float *norm_weight, *norm_bias, *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias;
};

// Sizes and inputs shared by the forward and the backward pass.
struct Attention {
  int64_t batch, rows, keys, refs, heads, dim;
  int64_t ref_batch;  // 1 or batch
  DType dtype;
  Rows q, k, v, k_ref, v_ref;
  const int32_t* bits = nullptr;  // [batch or 1, rows]; null: every row sees every segment
  int64_t bits_batch = 0;         // stride of its batch, 0 broadcasts
  int64_t segments = 0;
  const int64_t* lengths = nullptr;  // [segments]
  const float* bias = nullptr;       // [segments] or null
  const Rotation* rope = nullptr;
  const Rotation* ref_rope = nullptr;
  GateMode gate_mode = GateMode::kNone;
  Gate gate{};
  float scale = 1.f;
};

struct AttentionForward {
  Attention in;
  Rows out;
  Rows ungated;     // attention before the token gate; data null: not wanted
  float* lse;       // [batch, heads, rows]
  float* gate_sum;  // [batch, heads], written with GateMode::kSum only
};

struct AttentionBackward {
  Attention in;
  Rows o;                                // attention output before the gate
  const float* lse;                      // [batch, heads, rows]
  Rows grad_out;                         // data null: no gradient
  const float* grad_lse = nullptr;       // [batch, heads, rows] or null
  const float* grad_gate_sum = nullptr;  // [batch, heads] or null
  Rows dq, dk, dv, dk_ref, dv_ref;
  float* dbias = nullptr;  // [segments] or null
  GateGrad dgate{};
};

// RMS norm over heads * dim (weight null: none), then rotation (or its inverse).
struct NormRope {
  int64_t batch, rows, heads, dim;
  DType dtype;
  Rows x, y;
  const float* weight = nullptr;  // [heads * dim]
  float eps = 0.f;
  Rotation rope;
  bool inverse = false;
};

struct NormRopeBackward {
  NormRope in;  // y is the gradient that comes in
  Rows dx;
  float* dweight;  // [heads * dim]
};

}  // namespace genhoi::cpu
