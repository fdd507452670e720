// The kernels' entry points: one table of functions per instruction set, each filled in by its
// kernels_<isa>.cpp.
#pragma once

#include <cstdint>

#include "cpu/call.h"
#include "cpu/runtime.h"

namespace genhoi::cpu {

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
