// Query rows as the backward pass's sweep over keys reads them.
#pragma once

#include "cpu/attention/bwd_dq.h"
#include "cpu/attention/logits.h"
#include "cpu/gemm/pack.h"

namespace genhoi::cpu {
namespace {

// A number in two floats, so that adding it loses nothing of a double's precision that a float
// result could show: an LSE of 20 in one float would put 1e-6 into every probability.
struct TwoFloats {
  float high, low;
  TwoFloats(double x) : high(static_cast<float>(x)), low(static_cast<float>(x - high)) {
    // Inf - Inf: an infinite number is all in `high`.
    if (low != low && high == high) low = 0.f;
  }
};

// In tiles of kBlock, numbered `at` = bh * tiles + t; also where their dQ is summed. Either all
// rows of each sample, or those that see a reference.
template <class Element>
struct QueryRows {
  int64_t dim, dim_padded, tiles;  // tiles: room for so many of each sample and head
  // Operands B; q rotated and times LogitScale::on_queries.
  Buffer<Element> q_transposed, q, grad_o_transposed, grad_o;
  // [kBlock] of each tile: bias - lse in units of log2 e, in two parts, and delta.
  Buffer<float> shift_high, shift_low, delta;
  Buffer<int64_t> count;  // rows of each sample and head
  DqTiles<Element> dq;

  QueryRows(int64_t size, int64_t rows, int64_t head_dim)
      : dim(head_dim),
        dim_padded(round_up(head_dim, kPanel)),
        tiles(div_up(rows, kBlock)),
        q_transposed(size * tiles * kBlock * dim),
        q(size * tiles * kBlock * dim_padded),
        grad_o_transposed(size * tiles * kBlock * dim),
        grad_o(size * tiles * kBlock * dim_padded),
        shift_high(size * tiles * kBlock),
        shift_low(size * tiles * kBlock),
        delta(size * tiles * kBlock),
        count(size),
        dq(size * tiles, head_dim) {}

  int64_t rows_of(int64_t bh, int64_t t) const { return min_of(kBlock, count[bh] - t * kBlock); }

  // Packs a tile of q and of dO [rows, dim], and empties its dQ.
  void pack(int64_t at, const float* q_tile, const float* grad_o_tile, int64_t rows) const {
    const Matrix from_q = {.data = q_tile, .rows = rows, .columns = dim, .stride = dim};
    const Matrix from_grad = {.data = grad_o_tile, .rows = rows, .columns = dim, .stride = dim};
    pack_b_transposed(from_q, q_transposed + at * kBlock * dim);
    pack_b(from_q, kBlock, q + at * kBlock * dim_padded);
    pack_b_transposed(from_grad, grad_o_transposed + at * kBlock * dim);
    pack_b(from_grad, kBlock, grad_o + at * kBlock * dim_padded);
    dq.clear(at);
  }

  // Takes the rows that `which` lists, or the first ones; padding gets probability 0.
  void load_stats(int64_t at, const float* lse, const float* deltas, const int32_t* which,
                  int64_t rows, double bias) const {
    for (int64_t j = 0; j < kBlock; j++) {
      const int64_t row = which && j < rows ? which[j] : j;
      const TwoFloats shift(j < rows ? bias - lse[row] * kLog2e : -__builtin_inf());
      shift_high[at * kBlock + j] = shift.high;
      shift_low[at * kBlock + j] = shift.low;
      delta[at * kBlock + j] = j < rows ? deltas[row] : 0.f;
    }
  }
};

}  // namespace
}  // namespace genhoi::cpu
