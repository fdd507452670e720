// All kernels, and the table that a kernels_<isa>.cpp makes of them for its instruction set.
#pragma once

#include "cpu/attention/backward.h"
#include "cpu/attention/forward.h"
#include "cpu/kernels.h"
#include "cpu/norm_rope/backward.h"
#include "cpu/norm_rope/forward.h"
#include "cpu/peak.h"

namespace genhoi::cpu {
namespace {

// A constant expression: no code of an instruction set runs before the CPU was asked for it.
constexpr Kernels kernel_table(const char* isa) {
  return {
      .name = isa,
      .vector_bits = 32 * kVector,
      .attention_forward = attention_forward,
      .attention_backward = attention_backward,
      .norm_rope_forward = norm_rope_forward,
      .norm_rope_backward = norm_rope_backward,
      .repeat_products = repeat_products,
  };
}

}  // namespace
}  // namespace genhoi::cpu
