// The backward pass's loop over references: each segment with those rows only that see it.
#pragma once

#include "cpu/attention/bwd_reduce.h"
#include "cpu/attention/bwd_sweep.h"
#include "cpu/attention/mask.h"

namespace genhoi::cpu {
namespace {

// The rows that see one segment, sample by sample: their numbers.
struct SeeingRows {
  Buffer<int32_t> which;  // [batch, rows]
  Buffer<int64_t> count;  // [batch]
  int64_t max_count = 0;
  SeeingRows(const Attention& in, int64_t segment) : which(in.batch * in.rows), count(in.batch) {
    for (int64_t b = 0; b < in.batch; b++) {
      count[b] = rows_that_see(in, b, 0, in.rows, segment, which + b * in.rows);
      max_count = max_of(max_count, count[b]);
    }
  }
};

// Packs those rows from what bwd_preprocess() wrote; `bias` in units of log2 e.
template <class Element>
void pack_seeing_rows(const BackwardHeads& work, const SeeingRows& seeing, double bias,
                      const Pool& pool, const QueryRows<Element>& to) {
  const Attention& in = work.in;
  for (int64_t bh = 0; bh < work.size(); bh++) to.count[bh] = seeing.count[work.heads.sample(bh)];
  parallel(pool, work.size() * to.tiles, [&](Queue& queue) {
    Buffer<float> q(kBlock * in.dim), grad_o(kBlock * in.dim);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const int64_t t = item % to.tiles, bh = item / to.tiles, b = work.heads.sample(bh);
      const int64_t count = to.rows_of(bh, t);
      if (count <= 0) continue;
      const int32_t* which = seeing.which + b * in.rows + t * kBlock;
      load_tile(in, in.q,
                {.b = b, .h = work.heads.head(bh), .first = 0, .count = count, .which = which},
                in.rope, q);
      scale_row(q, count * in.dim, LogitScale<Element>(in.scale).on_queries);
      gather_rows(work.grad_o + bh * in.rows * in.dim, in.dim, which, count, grad_o.get());
      to.pack(item, q, grad_o, count);
      to.load_stats(item, work.lse + bh * in.rows, work.delta + bh * in.rows, which, count, bias);
    }
  });
}

// Adds dQ of those rows to that of all rows.
template <class Element>
void add_dq_of_seeing_rows(const BackwardHeads& work, const SeeingRows& seeing,
                           const QueryRows<Element>& from, const Pool& pool,
                           const QueryRows<Element>& to) {
  const Attention& in = work.in;
  parallel(pool, work.size() * from.tiles, [&](Queue& queue) {
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const int64_t t = item % from.tiles, bh = item / from.tiles;
      const int32_t* which = seeing.which + work.heads.sample(bh) * in.rows + t * kBlock;
      for (int64_t j = 0; j < from.rows_of(bh, t); j++) {
        const float* x = from.dq.tile(item) + j;
        float* y = to.dq.tile(bh * to.tiles + which[j] / kBlock) + which[j] % kBlock;
        for (int64_t d = 0; d < in.dim; d++) y[d * kBlock] += x[d * kBlock];
      }
    }
  });
}

// Sweeps the references, one segment after the other; adds to `rows`' dQ and to the biases'
// gradients.
template <class Element>
void reference_backward(const BackwardHeads& work, const KeyBlocks& blocks, const Pool& pool,
                        const QueryRows<Element>& rows, SharedGrads& shared) {
  const Attention& in = work.in;
  const int64_t size = in.ref_batch * work.heads.count;
  Buffer<double> ds_sums(size * blocks.size());
  for (int64_t first = 0, end; first < blocks.size(); first = end) {
    end = blocks.end_of_segment(first);
    const int64_t segment = blocks[first].segment;
    const SeeingRows seeing(in, segment);
    const QueryRows<Element> seeing_rows(work.size(), seeing.max_count, in.dim);
    const double bias = in.bias ? in.bias[segment] * kLog2e : 0.;
    pack_seeing_rows(work, seeing, bias, pool, seeing_rows);
    const SweptKeys keys = {
        .k = in.k_ref,
        .v = in.v_ref,
        .dk = work.call.dk_ref,
        .dv = work.call.dv_ref,
        .rope = in.ref_rope,
        .blocks = blocks,
        .first_block = first,
        .last_block = end,
        .batch = in.ref_batch,
    };
    sweep_keys(work, keys, seeing_rows, ds_sums, pool);
    shared.add_bias(segment, ds_sums, size * (end - first));
    add_dq_of_seeing_rows(work, seeing, seeing_rows, pool, rows);
  }
}

}  // namespace
}  // namespace genhoi::cpu
