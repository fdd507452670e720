// dQ in the backward pass: where all blocks of keys add to it, in their order, and how it is
// stored.
#pragma once

#include <sched.h>

#include "cpu/attention/head_group.h"
#include "cpu/attention/tiles.h"
#include "cpu/gemm/gemm.h"

namespace genhoi::cpu {
namespace {

// dQ^T of tiles of query rows. All blocks of keys add to a tile, each when it is its turn, so that
// the sum's order does not depend on the threads.
template <class Element>
struct DqTiles {
  int64_t dim_rows;           // dim, padded to the register tile's rows
  Buffer<float> values;       // [tiles, dim_rows, kBlock]
  Buffer<int32_t> next_turn;  // [tiles]: blocks of keys that have added their part

  DqTiles(int64_t tiles, int64_t dim)
      : dim_rows(round_up(dim, GemmTraits<Element>::kRows)),
        values(tiles * dim_rows * kBlock),
        next_turn(tiles) {}

  float* tile(int64_t at) const { return values + at * dim_rows * kBlock; }

  void clear(int64_t at) const {
    std::memset(tile(at), 0, dim_rows * kBlock * sizeof(float));
    next_turn[at] = 0;
  }

  // The thread that has an earlier block waits for none with a later one, so this ends.
  void wait_for_turn(int64_t at, int32_t turn) const {
    const int32_t* next = next_turn + at;
    for (int spins = 0; __atomic_load_n(next, __ATOMIC_ACQUIRE) != turn; spins++) {
      if (spins > 1000) sched_yield();
    }
  }
  void end_turn(int64_t at, int32_t turn) const {
    __atomic_store_n(next_turn + at, turn + 1, __ATOMIC_RELEASE);
  }
};

// Stores dQ of all rows of a group of heads, `tiles` tiles for each sample and head.
template <class Element>
void store_dq(const AttentionBackward& call, const HeadGroup& heads, int64_t tiles,
              const DqTiles<Element>& dq, const Pool& pool) {
  const Attention& in = call.in;
  parallel(pool, in.batch * heads.count * tiles, [&](Queue& queue) {
    Buffer<float> tile(kBlock * in.dim);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const int64_t bh = item / tiles, first = item % tiles * kBlock;
      const TileRows rows = {.b = heads.sample(bh),
                             .h = heads.head(bh),
                             .first = first,
                             .count = min_of(kBlock, in.rows - first)};
      const float* transposed = dq.tile(item);
      for (int64_t i = 0; i < rows.count; i++) {
        for (int64_t d = 0; d < in.dim; d++) tile[i * in.dim + d] = transposed[d * kBlock + i];
      }
      store_grad_tile(in, tile, in.dim, rows, in.rope, in.scale, call.dq);
    }
  });
}

}  // namespace
}  // namespace genhoi::cpu
