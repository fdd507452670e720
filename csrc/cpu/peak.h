// How fast this CPU multiplies, nothing but multiplying: the limit that benchmarks refer to.
#pragma once

#include "cpu/gemm/register_tile.h"

namespace genhoi::cpu {
namespace {

// Keeps the compiler from knowing what x holds.
inline void forget(Vec& x) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(x));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(x));
#else
  asm volatile("" : "+m"(x));
#endif
}

// 12 independent sums hide the latency of a multiply-add.
constexpr int kSums = 12;

template <class Step>
inline void repeat_steps(int64_t times, const Step& step) {
  Vec sums[kSums] = {};
  for (Vec& x : sums) forget(x);  // else they are seen to be the same
  for (int64_t i = 0; i < times; i++) {
#pragma GCC unroll 12
    for (int s = 0; s < kSums; s++) step(sums[s]);
  }
  for (Vec& x : sums) forget(x);
}

// Multiplies `times` times on this thread; returns the operations done, a multiply-add being two.
inline double repeat_float32(int64_t times) {
  Vec x = splat(1e-3f);
  const Vec y = splat(1.f);
  repeat_steps(times, [&](Vec& sum) {
    forget(x);  // else x * y is computed once
    sum += x * y;
  });
  return 2. * kVector * kSums * static_cast<double>(times);
}

#if GENHOI_BFLOAT16 == GENHOI_BFLOAT16_PAIRS
inline double repeat_bfloat16(int64_t times) {
  BFloat16 ones[2 * kVector];
  for (BFloat16& x : ones) x = {0x3f80};
  const PairVec x = load_pairs(ones);
  repeat_steps(times, [&](Vec& sum) { sum = add_pair_products(sum, x, x); });
  return 4. * kVector * kSums * static_cast<double>(times);
}
#elif GENHOI_BFLOAT16 == GENHOI_BFLOAT16_TILES
inline double repeat_bfloat16(int64_t times) {
  const TileUnit unit;
  TILE_ZERO(4);
  TILE_ZERO(5);
  TILE_ZERO(6);
  TILE_ZERO(7);
  for (int64_t i = 0; i < times; i++) {
    TILE_MULTIPLY(0, 4, 6);
    TILE_MULTIPLY(1, 4, 7);
    TILE_MULTIPLY(2, 5, 6);
    TILE_MULTIPLY(3, 5, 7);
  }
  return 4. * 2 * 16 * 16 * 32 * static_cast<double>(times);
}
#else
inline double repeat_bfloat16(int64_t times) { return repeat_float32(times); }
#endif

// float16 is multiplied as float32 on every instruction set here.
double repeat_products(DType dtype, int64_t times) {
  return dtype == DType::kBFloat16 ? repeat_bfloat16(times) : repeat_float32(times);
}

}  // namespace
}  // namespace genhoi::cpu
