// What csrc/cpu/bfloat16_pairs.h and bfloat16_tiles.h do with one instruction each, in plain C++,
// for CPUs without AVX512-BF16 and AMX. Rounding may differ: the instructions flush subnormal
// numbers.
#pragma once

#include "../../csrc/cpu/simd.h"

namespace genhoi::cpu {
namespace {

using PairVec = IntVec;

inline PairVec load_pairs(const BFloat16* from) {
  PairVec x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline PairVec splat_pair(const BFloat16* from) {
  int32_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return pair - PairVec{};
}

inline Vec first_of(PairVec x) { return (Vec)(x << 16); }
inline Vec second_of(PairVec x) { return (Vec)(x & static_cast<int32_t>(0xffff0000)); }

inline Vec add_pair_products(Vec sums, PairVec x, PairVec y) {
  return sums + first_of(x) * first_of(y) + second_of(x) * second_of(y);
}

// Eight tiles of 16 rows x 64 bytes; usable only while a TileUnit lives.
struct Tiles {
  char bytes[8][16][64];
  bool configured = false;
} tiles;

struct TileUnit {
  TileUnit() { tiles.configured = true; }
  ~TileUnit() { tiles.configured = false; }
};

inline void tile_zero(int tile) { std::memset(tiles.bytes[tile], 0, sizeof tiles.bytes[tile]); }

inline void tile_load(int tile, const void* from, int64_t stride) {
  if (!tiles.configured) std::abort();
  for (int i = 0; i < 16; i++) {
    std::memcpy(tiles.bytes[tile][i], static_cast<const char*>(from) + i * stride, 64);
  }
}

inline void tile_store(int tile, void* to, int64_t stride) {
  for (int i = 0; i < 16; i++) {
    std::memcpy(static_cast<char*>(to) + i * stride, tiles.bytes[tile][i], 64);
  }
}

inline void tile_multiply(int sums, int a, int b) {
  float c[16][16];
  uint16_t x[16][32], y[16][32];
  std::memcpy(c, tiles.bytes[sums], sizeof c);
  std::memcpy(x, tiles.bytes[a], sizeof x);
  std::memcpy(y, tiles.bytes[b], sizeof y);
  for (int i = 0; i < 16; i++) {
    for (int t = 0; t < 32; t++) {
      for (int j = 0; j < 16; j++) {
        c[i][j] += from_bfloat16(x[i][t]) * from_bfloat16(y[t / 2][2 * j + t % 2]);
      }
    }
  }
  std::memcpy(tiles.bytes[sums], c, sizeof c);
}

#define TILE_ZERO(tile) tile_zero(tile)
#define TILE_LOAD(tile, from, stride) tile_load(tile, from, stride)
#define TILE_STORE(tile, to, stride) tile_store(tile, to, stride)
#define TILE_MULTIPLY(sums, a, b) tile_multiply(sums, a, b)

}  // namespace
}  // namespace genhoi::cpu
