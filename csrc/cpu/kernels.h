// What the CPU kernels take: plain structs, no torch. One table of functions per instruction set.
#pragma once

#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace genhoi::cpu {

// Asks for huge pages in memory about to be written for the first time: 4 KB pages are handed out
// one by one, which for a large output can take longer than computing it. `static`: see simd.h.
static inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  const uintptr_t from = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (from + kHuge - 1) / kHuge * kHuge, end = (from + bytes) / kHuge * kHuge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16 };
enum class GateMode : int32_t { kNone, kToken, kSum };

// Runs body(begin, end, context) over a partition of [0, items) on up to `threads` threads.
struct Pool {
  int64_t threads;
  void (*run)(int64_t items, void (*body)(int64_t begin, int64_t end, void* context),
              void* context);
};

// A [batch, row, head, D] tensor: strides in elements, D contiguous; batch stride 0 broadcasts.
struct Rows {
  void* data = nullptr;
  int64_t batch = 0, row = 0, head = 0;
};

// Angle tables of three axes, [positions, pairs, (cos, sin)], and each token's row in them.
struct Rotation {
  const float* axis[3] = {nullptr, nullptr, nullptr};
  int64_t pairs[3] = {0, 0, 0};
  const int32_t* index = nullptr;  // [tokens, 3]
  bool frame_is_head = false;      // the head, not index[0], is the row of axis[0]
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

struct Kernels {
  const char* name;
  int vector_bits;
  void (*attention_forward)(const AttentionForward&, const Pool&);
  void (*attention_backward)(const AttentionBackward&, const Pool&);
  void (*norm_rope_forward)(const NormRope&, const Pool&);
  void (*norm_rope_backward)(const NormRopeBackward&, const Pool&);
  double (*repeat_products)(DType, int64_t times);  // see peak.h
};

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
extern const Kernels kAmxKernels;
#endif

}  // namespace genhoi::cpu
