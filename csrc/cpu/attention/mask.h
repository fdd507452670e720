// The mask gate: which rows see which reference segments.
#pragma once

#include "cpu/call.h"

namespace genhoi::cpu {
namespace {

// Lists those of rows [first, first + count) that see a segment, by their numbers within these;
// returns how many they are.
inline int64_t rows_that_see(const Attention& in, int64_t b, int64_t first, int64_t count,
                             int64_t segment, int32_t* which) {
  int64_t n = 0;
  for (int64_t i = 0; i < count; i++) {
    const bool sees =
        !in.bits || (static_cast<uint32_t>(in.bits[b * in.bits_batch + first + i]) >> segment & 1);
    if (sees) which[n++] = static_cast<int32_t>(i);
  }
  return n;
}

// Bits of the segments that any row of a sample sees, of all samples if they share the references.
inline uint32_t segments_seen(const Attention& in, int64_t ref_sample) {
  if (!in.bits) return ~0u;
  const bool shared = in.ref_batch == 1;
  uint32_t seen = 0;
  for (int64_t b = shared ? 0 : ref_sample; b < (shared ? in.batch : ref_sample + 1); b++) {
    const int32_t* bits = in.bits + b * in.bits_batch;
    for (int64_t i = 0; i < in.rows; i++) seen |= static_cast<uint32_t>(bits[i]);
  }
  return seen;
}

}  // namespace
}  // namespace genhoi::cpu
