// Forward pass: tiled online softmax over the video's keys, then over the reference segments that a
// tile's rows see; flow gate in the epilogue. Logits are kept in units of log2 e.
#pragma once

#include <memory>

#include "flow_gate.h"

namespace genhoi::cpu {
namespace {

// Keys and values of some heads, packed by blocks: keys as panels of K^T, values as panels of V.
struct PackedKeys {
  int64_t blocks, dim, dim_padded;
  Buffer<float> keys, values;
  PackedKeys(int64_t pairs, int64_t blocks_of_head, int64_t head_dim)
      : blocks(blocks_of_head),
        dim(head_dim),
        dim_padded(round_up(head_dim, kPanel)),
        keys(pairs * blocks * kBlock * dim),
        values(pairs * blocks * kBlock * dim_padded) {}
  float* key_block(int64_t pair, int64_t block) const {
    return keys + (pair * blocks + block) * kBlock * dim;
  }
  float* value_block(int64_t pair, int64_t block) const {
    return values + (pair * blocks + block) * kBlock * dim_padded;
  }
};

inline void pack_keys(const Attention& in, const Rows& k, const Rows& v, const Rotation* rope,
                      const KeyBlocks& blocks, int64_t batches, int64_t first_head, int64_t heads,
                      const Pool& pool, const PackedKeys& to) {
  parallel(pool, batches * heads * blocks.size(), [&](Queue& queue) {
    Buffer<float> tile(kBlock * in.dim);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const int64_t block = item % blocks.size(), pair = item / blocks.size();
      const int64_t b = pair / heads, h = first_head + pair % heads;
      const KeyBlock& at = blocks[block];
      load_tile(k, in.dtype, in.dim, b, h, at.first, at.count, nullptr, rope, 1.f, tile);
      pack_transposed(tile, at.count, in.dim, in.dim, to.key_block(pair, block));
      load_tile(v, in.dtype, in.dim, b, h, at.first, at.count, nullptr, nullptr, 1.f, tile);
      pack_rows(tile, at.count, in.dim, in.dim, kBlock, to.value_block(pair, block));
    }
  });
}

// Running softmax of a tile of rows. out is the sum of exp2(logit - highest) * v.
struct SoftmaxTile {
  Buffer<float> q, out, highest, total;
  SoftmaxTile(int64_t dim, int64_t dim_padded)
      : q(kBlock * dim), out(kBlock * dim_padded), highest(kBlock), total(kBlock) {}
};

// One row of logits [0, padded), of which `count` are keys: becomes exp2(logit + bias - highest).
inline void softmax_row(float* logits, int64_t count, float bias, float& highest, float& total,
                        float* out, int64_t out_size) {
  const int64_t padded = round_up(count, kVector);
  for (int64_t j = count; j < padded; j++) logits[j] = -__builtin_inff();
  Vec most = load(logits);
  for (int64_t j = kVector; j < padded; j += kVector) {
    const Vec x = load(logits + j);
    most = x > most ? x : most;
  }
  const float new_highest = max(most) + bias > highest ? max(most) + bias : highest;
  // A row whose logits are all -inf so far must not turn into -inf - -inf.
  const float base = new_highest == -__builtin_inff() ? 0.f : new_highest;
  const Vec lower = splat(base), raise = splat(bias);
  Vec sums{};
  for (int64_t j = 0; j < padded; j += kVector) {
    const Vec p = exp2(load(logits + j) - lower + raise);
    sums += p;
    store(logits + j, p);
  }
  if (new_highest != highest) {
    const float shrink = exp2(highest - base);
    total *= shrink;
    const Vec factor = splat(shrink);
    for (int64_t d = 0; d < out_size; d += kVector) store(out + d, load(out + d) * factor);
    highest = new_highest;
  }
  total += sum(sums);
}

inline void attend(SoftmaxTile& tile, int64_t rows, const PackedKeys& keys, int64_t pair,
                   int64_t block, int64_t count, float bias, float* logits) {
  gemm<false>(rows, div_up(count, kPanel), keys.dim, tile.q, keys.dim, keys.key_block(pair, block),
              keys.dim * kPanel, logits, kBlock);
  for (int64_t i = 0; i < rows; i++) {
    softmax_row(logits + i * kBlock, count, bias, tile.highest[i], tile.total[i],
                tile.out + i * keys.dim_padded, keys.dim_padded);
  }
  gemm<true>(rows, keys.dim_padded / kPanel, count, logits, kBlock, keys.value_block(pair, block),
             kBlock * kPanel, tile.out, keys.dim_padded);
}

// Attends to the reference segments with those rows only that see them: the others are not touched,
// and what an unseen reference holds (NaN even) cannot reach them.
inline void attend_references(const Attention& in, int64_t b, int64_t first, int64_t rows,
                              const PackedKeys& keys, int64_t pair, const KeyBlocks& blocks,
                              SoftmaxTile& tile, SoftmaxTile& part, int32_t* which, float* logits) {
  int64_t i = 0;
  while (i < blocks.size()) {
    const int64_t segment = blocks[i].segment;
    const float bias = in.bias ? static_cast<float>(in.bias[segment] * kLog2e) : 0.f;
    const int64_t seen = rows_that_see(in, b, first, rows, segment, which);
    SoftmaxTile& on = seen == rows ? tile : part;
    if (seen > 0 && seen < rows) {
      gather_rows(tile.q, keys.dim, which, seen, part.q);
      zero_padding(part.q, seen, keys.dim);
      gather_rows(tile.out, keys.dim_padded, which, seen, part.out);
      gather_rows(tile.highest, 1, which, seen, part.highest);
      gather_rows(tile.total, 1, which, seen, part.total);
    }
    for (; i < blocks.size() && blocks[i].segment == segment; i++) {
      if (seen > 0) attend(on, seen, keys, pair, i, blocks[i].count, bias, logits);
    }
    if (seen > 0 && seen < rows) {
      scatter_rows(part.out, keys.dim_padded, which, seen, tile.out);
      scatter_rows(part.highest, 1, which, seen, tile.highest);
      scatter_rows(part.total, 1, which, seen, tile.total);
    }
  }
}

// Divides by the softmax's total, gates, and writes a tile of rows. Returns the sum of the logits.
inline float finish_tile(const AttentionForward& call, const PackedGate* gate, GateScratch* scratch,
                         int64_t b, int64_t h, int64_t first, int64_t rows, SoftmaxTile& tile,
                         int64_t dim_padded) {
  const Attention& in = call.in;
  for (int64_t i = 0; i < rows; i++) {
    float* out = tile.out + i * dim_padded;
    const float total = tile.total[i];
    // No key at all: zeros and an LSE of -inf.
    const float inverse = total == 0.f ? 0.f : 1.f / total;
    for (int64_t d = 0; d < in.dim; d++) out[d] *= inverse;
    call.lse[(b * in.heads + h) * in.rows + first + i] =
        total == 0.f
            ? -__builtin_inff()
            : static_cast<float>(tile.highest[i] * kLn2 + std::log(static_cast<double>(total)));
  }
  float logit_sum = 0.f;
  if (gate) gate_logits(*gate, tile.out, dim_padded, rows, *scratch);
  for (int64_t i = 0; i < rows; i++) {
    float* out = tile.out + i * dim_padded;
    if (in.gate_mode == GateMode::kToken) {
      if (call.ungated.data) {
        store_row(out, in.dtype, in.dim, row_at(call.ungated, in.dtype, b, first + i, h));
      }
      const float g = sigmoid(scratch->logits[i]);
      for (int64_t d = 0; d < in.dim; d++) out[d] *= g;
    } else if (in.gate_mode == GateMode::kSum) {
      logit_sum += scratch->logits[i];
    }
    store_row(out, in.dtype, in.dim, row_at(call.out, in.dtype, b, first + i, h));
  }
  return logit_sum;
}

inline void start_tile(SoftmaxTile& tile, int64_t rows, int64_t dim_padded) {
  for (int64_t i = 0; i < rows; i++) {
    tile.highest[i] = -__builtin_inff();
    tile.total[i] = 0.f;
  }
  std::memset(tile.out, 0, round_up(rows, kTileRows) * dim_padded * sizeof(float));
}

// Everything the tiles of some heads read (`pair` = b * heads + h - first_head).
struct ForwardHeads {
  const AttentionForward& call;
  const Attention& in;
  int64_t first_head, heads, tiles;
  KeyBlocks video_blocks, ref_blocks;
  PackedKeys video, refs;
  std::unique_ptr<const PackedGate> gate;

  ForwardHeads(const AttentionForward& c, int64_t group)
      : call(c),
        in(c.in),
        first_head(0),
        heads(group),
        tiles(div_up(in.rows, kBlock)),
        video_blocks(&in.keys, 1),
        ref_blocks(in.lengths, in.segments),
        video(in.batch * group, video_blocks.size(), in.dim),
        refs(in.ref_batch * group, ref_blocks.size(), in.dim) {
    if (in.gate_mode != GateMode::kNone) gate.reset(new PackedGate(in.gate, in.dim));
  }
};

// Tiles of rows that go through the keys together, so that a block of keys is read from the inner
// caches by all but the first.
constexpr int64_t kTogether = 2;

class ForwardWorker {
 public:
  explicit ForwardWorker(const ForwardHeads& heads)
      : at_(heads),
        tiles_{{heads.in.dim, heads.video.dim_padded}, {heads.in.dim, heads.video.dim_padded}},
        part_(heads.in.dim, heads.video.dim_padded),
        logits_(kBlock * kBlock),
        which_(kBlock),
        gate_(heads.gate ? new GateScratch(*heads.gate) : nullptr) {}

  // Rows of the tiles [first_tile, last_tile), at most kTogether.
  void run(int64_t pair, int64_t first_tile, int64_t last_tile, float* logit_sums) {
    const Attention& in = at_.in;
    const int64_t b = pair / at_.heads, h = at_.first_head + pair % at_.heads;
    const int64_t ref_pair = in.ref_batch == 1 ? pair % at_.heads : pair;
    for (int64_t t = first_tile; t < last_tile; t++) {
      SoftmaxTile& tile = tiles_[t - first_tile];
      load_tile(in.q, in.dtype, in.dim, b, h, t * kBlock, rows(t), nullptr, in.rope,
                static_cast<float>(in.scale * kLog2e), tile.q);
      zero_padding(tile.q, rows(t), in.dim);
      start_tile(tile, rows(t), at_.video.dim_padded);
    }
    for (int64_t i = 0; i < at_.video_blocks.size(); i++) {
      for (int64_t t = first_tile; t < last_tile; t++) {
        attend(tiles_[t - first_tile], rows(t), at_.video, pair, i, at_.video_blocks[i].count, 0.f,
               logits_);
      }
    }
    for (int64_t t = first_tile; t < last_tile; t++) {
      SoftmaxTile& tile = tiles_[t - first_tile];
      attend_references(in, b, t * kBlock, rows(t), at_.refs, ref_pair, at_.ref_blocks, tile, part_,
                        which_, logits_);
      logit_sums[(b * in.heads + h) * at_.tiles + t] =
          finish_tile(at_.call, at_.gate.get(), gate_.get(), b, h, t * kBlock, rows(t), tile,
                      at_.video.dim_padded);
    }
  }

 private:
  int64_t rows(int64_t t) const { return min_of(kBlock, at_.in.rows - t * kBlock); }

  const ForwardHeads& at_;
  SoftmaxTile tiles_[kTogether];
  SoftmaxTile part_;
  Buffer<float> logits_;
  Buffer<int32_t> which_;
  std::unique_ptr<GateScratch> gate_;
};

void attention_forward(const AttentionForward& call, const Pool& pool) {
  const Attention& in = call.in;
  const int64_t group = heads_at_once(in, pool);
  ForwardHeads at(call, group);
  const int64_t together = div_up(at.tiles, kTogether);
  Buffer<float> logit_sums(in.batch * in.heads * at.tiles);

  for (int64_t h0 = 0; h0 < in.heads; h0 += group) {
    at.first_head = h0;
    at.heads = min_of(group, in.heads - h0);
    pack_keys(in, in.k, in.v, in.rope, at.video_blocks, in.batch, h0, at.heads, pool, at.video);
    pack_keys(in, in.k_ref, in.v_ref, in.ref_rope, at.ref_blocks, in.ref_batch, h0, at.heads, pool,
              at.refs);
    parallel(pool, in.batch * at.heads * together, [&](Queue& queue) {
      ForwardWorker worker(at);
      for (int64_t item; (item = queue.next()) < queue.items;) {
        const int64_t first = item % together * kTogether;
        worker.run(item / together, first, min_of(first + kTogether, at.tiles), logit_sums);
      }
    });
  }
  if (in.gate_mode != GateMode::kSum) return;
  for (int64_t i = 0; i < in.batch * in.heads; i++) {
    double total = 0.;
    for (int64_t t = 0; t < at.tiles; t++) total += logit_sums[i * at.tiles + t];
    call.gate_sum[i] = static_cast<float>(total);
  }
}

}  // namespace
}  // namespace genhoi::cpu
