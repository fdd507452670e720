// Forward pass: tiled online softmax over the video's keys, then over the reference segments that a
// tile's rows see; flow gate in the epilogue.
#pragma once

#include <memory>

#include "cpu/attention/epilogue.h"
#include "cpu/attention/references.h"

namespace genhoi::cpu {
namespace {

// Everything the tiles of some heads read.
template <class Element>
struct ForwardHeads {
  const AttentionForward& call;
  const Attention& in;
  HeadGroup heads;
  int64_t tiles;
  PackedKV<Element> video, refs;
  std::unique_ptr<const PackedGate> gate;

  ForwardHeads(const AttentionForward& c, int64_t group)
      : call(c),
        in(c.in),
        heads{.first = 0, .count = group},
        tiles(div_up(in.rows, kBlock)),
        video(&in.keys, 1, in.batch * group, in.dim),
        refs(in.lengths, in.segments, in.ref_batch * group, in.dim) {
    if (in.gate_mode != GateMode::kNone) gate.reset(new PackedGate(in.gate, in.dim));
  }
};

// Tiles of rows that go through the keys together, so that a block of keys is read from the inner
// caches by all but the first.
constexpr int64_t kTogether = 4;

template <class Element>
class ForwardWorker {
 public:
  explicit ForwardWorker(const ForwardHeads<Element>& work)
      : work_(work),
        tiles_{{work.in.dim, work.video.dim_padded},
               {work.in.dim, work.video.dim_padded},
               {work.in.dim, work.video.dim_padded},
               {work.in.dim, work.video.dim_padded}},
        subset_(work.in.dim, work.video.dim_padded),
        mainloop_(work.in.scale),
        loaded_(kBlock * work.in.dim),
        gate_scratch_(work.gate ? new GateScratch(*work.gate) : nullptr) {}

  // Rows of the tiles [first_tile, last_tile), at most kTogether; `logit_sums` of all tiles.
  void run(int64_t bh, int64_t first_tile, int64_t last_tile, float* logit_sums) {
    const Attention& in = work_.in;
    for (int64_t t = first_tile; t < last_tile; t++) load_queries(rows(bh, t), tile(t, first_tile));
    video_loop(bh, first_tile, last_tile);
    const int64_t ref_bh = in.ref_batch == 1 ? bh % work_.heads.count : bh;
    for (int64_t t = first_tile; t < last_tile; t++) {
      const TileRows at = rows(bh, t);
      reference_loop(in, at, work_.refs, ref_bh, tile(t, first_tile), subset_, mainloop_);
      logit_sums[(at.b * in.heads + at.h) * work_.tiles + t] =
          epilogue(work_.call, work_.gate.get(), gate_scratch_.get(), at, tile(t, first_tile),
                   work_.video.dim_padded);
    }
  }

 private:
  TileRows rows(int64_t bh, int64_t t) const {
    return {.b = work_.heads.sample(bh),
            .h = work_.heads.head(bh),
            .first = t * kBlock,
            .count = min_of(kBlock, work_.in.rows - t * kBlock)};
  }
  QueryTile<Element>& tile(int64_t t, int64_t first_tile) { return tiles_[t - first_tile]; }

  // Loads and rotates a tile of queries, and empties its softmax.
  void load_queries(const TileRows& rows, QueryTile<Element>& tile) {
    const Attention& in = work_.in;
    load_tile(in, in.q, rows, in.rope, loaded_);
    scale_row(loaded_, rows.count * in.dim, mainloop_.logit_scale.on_queries);
    pack_a({.data = loaded_, .rows = rows.count, .columns = in.dim, .stride = in.dim},
           tile.q.get());
    for (int64_t i = 0; i < rows.count; i++) {
      tile.row_max[i] = -__builtin_inff();
      store(tile.row_sum + i * kVector, Vec{});
    }
    const int64_t padded_rows = round_up(rows.count, GemmTraits<Element>::kRows);
    std::memset(tile.acc_o, 0, padded_rows * work_.video.dim_padded * sizeof(float));
  }

  void video_loop(int64_t bh, int64_t first_tile, int64_t last_tile) {
    for (int64_t block = 0; block < work_.video.blocks.size(); block++) {
      for (int64_t t = first_tile; t < last_tile; t++) {
        mainloop_.take({
            .tile = &tile(t, first_tile),
            .rows = rows(bh, t).count,
            .kv = &work_.video,
            .kv_bh = bh,
            .block = block,
            .bias = 0.f,
        });
      }
    }
    mainloop_.finish();
  }

  [[maybe_unused]] typename GemmTraits<Element>::Unit unit_;
  const ForwardHeads<Element>& work_;
  QueryTile<Element> tiles_[kTogether];
  RowSubset<Element> subset_;
  Mainloop<Element> mainloop_;
  Buffer<float> loaded_;
  std::unique_ptr<GateScratch> gate_scratch_;
};

// All tiles of the group's heads; `logit_sums` [batch, heads, tiles].
template <class Element>
void run_tiles(const ForwardHeads<Element>& work, const Pool& pool, float* logit_sums) {
  const int64_t size = work.in.batch * work.heads.count;
  // Fewer tiles at a time where that keeps all threads busy.
  const int64_t share = size * work.tiles / (4 * pool.threads);
  const int64_t together = max_of(1, min_of(kTogether, share));
  const int64_t sets = div_up(work.tiles, together);
  parallel(pool, size * sets, [&](Queue& queue) {
    ForwardWorker<Element> worker(work);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const int64_t first = item % sets * together;
      worker.run(item / sets, first, min_of(first + together, work.tiles), logit_sums);
    }
  });
}

template <class Element>
void attention_forward_in(const AttentionForward& call, const Pool& pool) {
  const Attention& in = call.in;
  const int64_t group = heads_at_once(in, pool);
  ForwardHeads<Element> work(call, group);
  Buffer<float> logit_sums(in.batch * in.heads * work.tiles);
  Buffer<uint32_t> all_seen(in.batch), seen(in.ref_batch);
  for (int64_t b = 0; b < in.batch; b++) all_seen[b] = ~0u;
  for (int64_t b = 0; b < in.ref_batch; b++) seen[b] = segments_seen(in, b);
  const KVSource video = {.k = in.k, .v = in.v, .rope = in.rope, .batch = in.batch};
  const KVSource refs = {.k = in.k_ref, .v = in.v_ref, .rope = in.ref_rope, .batch = in.ref_batch};

  for (int64_t first = 0; first < in.heads; first += group) {
    work.heads = {.first = first, .count = min_of(group, in.heads - first)};
    pack_kv(in, video, work.heads, all_seen, pool, work.video);
    pack_kv(in, refs, work.heads, seen, pool, work.refs);
    run_tiles(work, pool, logit_sums);
  }
  if (in.gate_mode != GateMode::kSum) return;
  for (int64_t i = 0; i < in.batch * in.heads; i++) {
    double gate_sum = 0.;
    for (int64_t t = 0; t < work.tiles; t++) gate_sum += logit_sums[i * work.tiles + t];
    call.gate_sum[i] = static_cast<float>(gate_sum);
  }
}

void attention_forward(const AttentionForward& call, const Pool& pool) {
#if defined(GENHOI_BFLOAT16)
  if (multiplies_bfloat16(call.in)) return attention_forward_in<BFloat16>(call, pool);
#endif
  attention_forward_in<float>(call, pool);
}

}  // namespace
}  // namespace genhoi::cpu
