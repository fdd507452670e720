// Conversions between float32 and the 16-bit dtypes, to nearest even: of a value, of a vector, and
// of a row of a tensor.
#pragma once

#include "cpu/call.h"
#include "cpu/vec.h"

namespace genhoi::cpu {
namespace {

// An operand of products on an instruction set that multiplies bfloat16.
struct BFloat16 {
  uint16_t bits;
};

inline float from_bfloat16(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
// NaN stays NaN.
inline uint16_t to_bfloat16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(f == f ? rounded : 0x7fc0);
}

#if defined(__F16C__)
inline float from_float16(uint16_t h) { return _cvtsh_ss(h); }
inline uint16_t to_float16(float f) { return _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT); }
#else
// float16 in plain integers: shift the exponent by multiplying, let the FPU round.
inline float from_float16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, rest = h & 0x7fff;
  uint32_t bits = rest << 13;
  float f;
  std::memcpy(&f, &bits, 4);
  f *= 0x1p112f;
  std::memcpy(&bits, &f, 4);
  if (rest >= 0x7c00) bits |= 0x7f800000;  // Inf and NaN
  bits |= sign;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline uint16_t to_float16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (bits >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds past 65504
  if (bits < 0x38800000) {  // subnormal float16: units of 2^-24, rounded to even by the addition
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000));
  }
  const uint32_t rounded = bits + 0xfff + (bits >> 13 & 1) - (112u << 23);
  return static_cast<uint16_t>(sign | rounded >> 13);
}
#endif

// The bits of a vector rounded to bfloat16, in the low 16 of each lane; NaN stays NaN.
inline IntVec bfloat16_bits(Vec x) {
  const UIntVec bits = (UIntVec)x;
  const UIntVec rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return x == x ? (IntVec)rounded : IntVec{} + 0x7fc0;
}

inline void store_bfloat16(uint16_t* to, Vec x) {
#if defined(__AVX512BF16__) && GENHOI_VECTOR_FLOATS == 16
  _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
  const ShortVec rounded = __builtin_convertvector((UIntVec)bfloat16_bits(x), ShortVec);
  std::memcpy(to, &rounded, sizeof rounded);
#endif
}
inline void store(BFloat16* to, Vec x) { store_bfloat16(&to->bits, x); }

// Two vectors rounded to bfloat16 (by the instruction as in store_bfloat16), as neighbours: `even`
// in the low 16 bits of each lane, `odd` in the high ones.
inline IntVec bfloat16_pairs(Vec even, Vec odd) {
#if defined(__AVX512BF16__) && GENHOI_VECTOR_FLOATS == 16
  typedef uint16_t WideShortVec __attribute__((vector_size(64)));
  WideShortVec source;
  for (int i = 0; i < 2 * kVector; i++) source[i] = static_cast<uint16_t>(i % 2 * kVector + i / 2);
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  return (IntVec)_mm512_permutexvar_epi16((__m512i)source, both);
#else
  return bfloat16_bits(even) | bfloat16_bits(odd) << 16;
#endif
}

inline Vec load_bfloat16(const uint16_t* from) {
#if defined(__AVX512F__) && GENHOI_VECTOR_FLOATS == 16
  // What compilers make of the lines below takes three instructions more.
  const __m256i bits = _mm256_loadu_si256((const __m256i*)from);
  return (Vec)((UIntVec)_mm512_maskz_cvtepu16_epi32(0xffff, bits) << 16);
#else
  ShortVec bits;
  std::memcpy(&bits, from, sizeof bits);
  return (Vec)(__builtin_convertvector(bits, UIntVec) << 16);
#endif
}

inline Vec load_float16(const uint16_t* from) {
#if defined(__AVX512F__) && GENHOI_VECTOR_FLOATS == 16
  return (Vec)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__) && GENHOI_VECTOR_FLOATS == 8
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
  Vec x{};
  for (int i = 0; i < kVector; i++) x[i] = from_float16(from[i]);
  return x;
#endif
}
inline void store_float16(uint16_t* to, Vec x) {
#if defined(__AVX512F__) && GENHOI_VECTOR_FLOATS == 16
  const __m256i rounded = _mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256((__m256i*)to, rounded);
#elif defined(__F16C__) && GENHOI_VECTOR_FLOATS == 8
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kVector; i++) to[i] = to_float16(x[i]);
#endif
}

constexpr int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// The address of row (b, i, h) of a tensor.
inline char* row_at(const Rows& x, DType dtype, int64_t b, int64_t i, int64_t h) {
  return static_cast<char*>(x.data) + (b * x.batch + i * x.row + h * x.head) * size_of(dtype);
}

inline void load_row(const void* from, DType dtype, int64_t n, float* to) {
  const uint16_t* bits = static_cast<const uint16_t*>(from);
  int64_t i = 0;
  if (dtype == DType::kFloat32) {
    std::memcpy(to, from, n * sizeof(float));
  } else if (dtype == DType::kBFloat16) {
    for (; i + kVector <= n; i += kVector) store(to + i, load_bfloat16(bits + i));
    for (; i < n; i++) to[i] = from_bfloat16(bits[i]);
  } else {
    for (; i + kVector <= n; i += kVector) store(to + i, load_float16(bits + i));
    for (; i < n; i++) to[i] = from_float16(bits[i]);
  }
}

inline void store_row(const float* from, DType dtype, int64_t n, void* to) {
  uint16_t* bits = static_cast<uint16_t*>(to);
  int64_t i = 0;
  if (dtype == DType::kFloat32) {
    std::memcpy(to, from, n * sizeof(float));
  } else if (dtype == DType::kBFloat16) {
    for (; i + kVector <= n; i += kVector) store_bfloat16(bits + i, load(from + i));
    for (; i < n; i++) bits[i] = to_bfloat16(from[i]);
  } else {
    for (; i + kVector <= n; i += kVector) store_float16(bits + i, load(from + i));
    for (; i < n; i++) bits[i] = to_float16(from[i]);
  }
}

}  // namespace
}  // namespace genhoi::cpu
