// AMX: eight tile registers of 16 rows x 64 bytes. Their numbers are part of the instructions,
// hence macros. dispatch.cpp has asked the operating system for them.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)
// tile += rows of bfloat16 in `a` times pairs of rows in `b`.
#define TILE_MULTIPLY(tile, a, b) _tile_dpbf16ps(tile, a, b)

namespace genhoi::cpu {
namespace {

// The shape of the tiles, loaded into a thread for as long as this lives.
class TileUnit {
 public:
  TileUnit() {
    struct alignas(64) Shape {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } shape = {};
    static_assert(sizeof(Shape) == 64);
    shape.palette = 1;
    for (int i = 0; i < 8; i++) {
      shape.row_bytes[i] = 64;
      shape.rows[i] = 16;
    }
    // GCC 12 does not see that the next instruction reads the shape.
    asm volatile("" : : "r"(&shape) : "memory");
    _tile_loadconfig(&shape);
  }
  ~TileUnit() { _tile_release(); }
  TileUnit(const TileUnit&) = delete;
  TileUnit& operator=(const TileUnit&) = delete;
};

}  // namespace
}  // namespace genhoi::cpu
