// Before the backward pass's sweep over keys: dO through the flow gate, delta, and query rows
// packed.
#pragma once

#include <memory>

#include "cpu/attention/bwd_flow_gate.h"
#include "cpu/attention/bwd_rows.h"

namespace genhoi::cpu {
namespace {

constexpr int64_t kMaxChunks = 16;  // partitions of a head's rows for the gate's weight gradients

// What the sweeps share of some heads.
struct BackwardHeads {
  const AttentionBackward& call;
  const Attention& in;
  HeadGroup heads;
  int64_t tiles, chunks;
  Buffer<float> grad_o;      // [bh, rows, dim]
  Buffer<float> lse, delta;  // [bh, rows]; delta = sum(dO * O) - dlse

  BackwardHeads(const AttentionBackward& c, int64_t group)
      : call(c),
        in(c.in),
        heads{.first = 0, .count = group},
        tiles(div_up(c.in.rows, kBlock)),
        chunks(min_of(tiles, kMaxChunks)),
        grad_o(in.batch * group * in.rows * in.dim),
        lse(in.batch * group * in.rows),
        delta(in.batch * group * in.rows) {}

  int64_t size() const { return in.batch * heads.count; }
};

template <class Element>
class PreprocessWorker {
 public:
  PreprocessWorker(const BackwardHeads& work, const PackedGate* gate, const QueryRows<Element>& to)
      : work_(work),
        in_(work.in),
        to_(to),
        gate_(gate ? new GateBackward(*gate) : nullptr),
        q_(kBlock * work.in.dim),
        o_(kBlock * work.in.dim) {}

  // Tile t of rows; the gate's gradients are added to `gate_sums`, null without a gate.
  void run(int64_t bh, int64_t t, const GateGradSums* gate_sums) {
    const TileRows rows = {.b = work_.heads.sample(bh),
                           .h = work_.heads.head(bh),
                           .first = t * kBlock,
                           .count = min_of(kBlock, in_.rows - t * kBlock)};
    const int64_t row = bh * in_.rows + rows.first, at = bh * to_.tiles + t;
    float* grad_o = work_.grad_o + row * in_.dim;
    load_tile(in_, work_.call.o, rows, nullptr, o_);
    load_grad_out(rows, grad_o);
    if (gate_) gate_->run(work_.call, rows, o_, grad_o, *gate_sums);
    write_stats(rows, grad_o, work_.lse + row, work_.delta + row);
    load_tile(in_, in_.q, rows, in_.rope, q_);
    scale_row(q_, rows.count * in_.dim, LogitScale<Element>(in_.scale).on_queries);
    to_.pack(at, q_, grad_o, rows.count);
    to_.load_stats(at, work_.lse + row, work_.delta + row, nullptr, rows.count, 0.);
  }

 private:
  void load_grad_out(const TileRows& rows, float* to) const {
    if (work_.call.grad_out.data) {
      load_tile(in_, work_.call.grad_out, rows, nullptr, to);
    } else {
      std::memset(to, 0, rows.count * in_.dim * sizeof(float));
    }
  }

  void write_stats(const TileRows& rows, const float* grad_o, float* lse, float* delta) const {
    const AttentionBackward& call = work_.call;
    const int64_t first = (rows.b * in_.heads + rows.h) * in_.rows + rows.first;
    for (int64_t i = 0; i < rows.count; i++) {
      const double dot_o = dot(grad_o + i * in_.dim, o_ + i * in_.dim, in_.dim);
      const float row_lse = call.lse[first + i];
      delta[i] = static_cast<float>(dot_o - (call.grad_lse ? call.grad_lse[first + i] : 0.f));
      // A row without any key: +inf makes every probability 0.
      lse[i] = row_lse == -__builtin_inff() ? __builtin_inff() : row_lse;
    }
  }

  const BackwardHeads& work_;
  const Attention& in_;
  const QueryRows<Element>& to_;
  std::unique_ptr<GateBackward> gate_;
  Buffer<float> q_, o_;
};

// All rows: dO and delta, and all that a sweep over the video's keys reads. `gate_partials` [bh,
// chunks, GateGradSums::size], zeroed.
template <class Element>
void bwd_preprocess(const BackwardHeads& work, const PackedGate* gate, double* gate_partials,
                    const Pool& pool, const QueryRows<Element>& to) {
  for (int64_t bh = 0; bh < work.size(); bh++) to.count[bh] = work.in.rows;
  parallel(pool, work.size() * work.chunks, [&](Queue& queue) {
    PreprocessWorker<Element> worker(work, gate, to);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const int64_t chunk = item % work.chunks, bh = item / work.chunks;
      const int64_t end = work.tiles * (chunk + 1) / work.chunks;
      for (int64_t t = work.tiles * chunk / work.chunks; t < end; t++) {
        if (gate) {
          const GateGradSums sums(*gate, gate_partials + item * GateGradSums::size(*gate));
          worker.run(bh, t, &sums);
        } else {
          worker.run(bh, t, nullptr);
        }
      }
    }
  });
}

}  // namespace
}  // namespace genhoi::cpu
