// Arithmetic of sizes. In an anonymous namespace, and instead of the standard library's functions,
// for the reason that config.h gives.
#pragma once

#include <cstdint>

namespace genhoi::cpu {
namespace {

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return div_up(a, b) * b; }

}  // namespace
}  // namespace genhoi::cpu
