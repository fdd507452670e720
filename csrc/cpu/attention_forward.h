// Forward pass: tiled online softmax over the video's keys, then over the reference segments that a
// tile's rows see; flow gate in the epilogue. Logits are kept in units of log2 e.
#pragma once

#include <memory>
#include <type_traits>

#include "flow_gate.h"

namespace genhoi::cpu {
namespace {

// Keys and values of some heads, packed by blocks: keys as panels of K^T, values as panels of V.
template <class T>
struct PackedKeys {
  int64_t blocks, dim, dim_padded;
  Buffer<T> keys, values;
  PackedKeys(int64_t pairs, int64_t blocks_of_head, int64_t head_dim)
      : blocks(blocks_of_head),
        dim(head_dim),
        dim_padded(round_up(head_dim, kPanel)),
        keys(pairs * blocks * kBlock * dim),
        values(pairs * blocks * kBlock * dim_padded) {}
  T* key_block(int64_t pair, int64_t block) const {
    return keys + (pair * blocks + block) * kBlock * dim;
  }
  T* value_block(int64_t pair, int64_t block) const {
    return values + (pair * blocks + block) * kBlock * dim_padded;
  }
};

// seen [batches]: bits of the segments that any row will read.
template <class T>
void pack_keys(const Attention& in, const Rows& k, const Rows& v, const Rotation* rope,
               const KeyBlocks& blocks, int64_t batches, int64_t first_head, int64_t heads,
               const uint32_t* seen, const Pool& pool, const PackedKeys<T>& to) {
  parallel(pool, batches * heads * blocks.size(), [&](Queue& queue) {
    Buffer<float> tile(kBlock * in.dim);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const int64_t block = item % blocks.size(), pair = item / blocks.size();
      const int64_t b = pair / heads, h = first_head + pair % heads;
      const KeyBlock& at = blocks[block];
      if (!(seen[b] >> at.segment & 1)) continue;
      load_tile(k, in.dtype, in.dim, b, h, at.first, at.count, nullptr, rope, tile);
      pack_right_transposed(tile, at.count, in.dim, in.dim, to.key_block(pair, block));
      load_tile(v, in.dtype, in.dim, b, h, at.first, at.count, nullptr, nullptr, tile);
      pack_right(tile, at.count, in.dim, in.dim, kBlock, to.value_block(pair, block));
    }
  });
}

// Running softmax of a tile of rows. out is the sum of exp2(logit - highest) * v; the lanes of
// total add up to the sum of exp2(logit - highest).
template <class T>
struct SoftmaxTile {
  Buffer<T> q;
  Buffer<float> out, highest, total;
  SoftmaxTile(int64_t dim, int64_t dim_padded)
      : q(kBlock * dim), out(kBlock * dim_padded), highest(kBlock), total(kBlock * kVector) {}
};

// Products of a tile with a block of keys, the probabilities they become, and what the tile's
// output so far is to be multiplied by.
template <class T>
struct Scores {
  Buffer<float> products, shrink;
  Buffer<T> probabilities;
  Scores() : products(kBlock * kBlock), shrink(kBlock), probabilities(kBlock * kBlock) {}
};

// Probabilities may outgrow 1 by this many powers of two before a row is scaled down again. In
// float32 not at all: rounding the argument of exp2 would show.
template <class T>
constexpr float kHeadroom = sizeof(T) == 2 ? 8.f : 0.f;

// A row of dot products with `count` keys: p = exp2(slope * product + bias - highest), zeros up to
// the padding of products over keys. Returns what the row's output so far is to be multiplied by.
template <class T>
inline float softmax_row(float* products, T* p, int64_t count, float slope, float bias,
                         float& highest, float* total) {
  using Polynomial = std::conditional_t<sizeof(T) == 2, Coarse, Exact>;
  const int64_t padded = round_up(count, kVector);
  // With a negative slope the highest logit is that of the lowest product.
  const float lowest = slope < 0.f ? __builtin_inff() : -__builtin_inff();
  for (int64_t j = count; j < padded; j++) products[j] = lowest;
  Vec most = load(products) * splat(slope);
  for (int64_t j = kVector; j < padded; j += kVector) {
    const Vec x = load(products + j) * splat(slope);
    most = x > most ? x : most;
  }
  float shrink = 1.f;
  if (any(most + splat(bias) > splat(highest + kHeadroom<T>))) {
    const float raised = max(most) + bias;
    shrink = exp2(highest - raised);
    highest = raised;
    multiply(total, kVector, shrink);
  }
  // A row whose logits are all -inf so far must not turn into -inf - -inf.
  const Vec shift = splat(bias - (highest == -__builtin_inff() ? 0.f : highest));
  Vec sums = load(total);
  for (int64_t j = 0; j < padded; j += kVector) {
    const Vec x = exp2<Polynomial>(load(products + j) * splat(slope) + shift);
    sums += x;
    store(p + j, x);
  }
  store(total, sums);
  const int64_t depth = round_up(count, Product<T>::kDepth);
  if (depth > padded) {
    std::memset(static_cast<void*>(p + padded), 0, (depth - padded) * sizeof(T));
  }
  return shrink;
}

// A tile of rows on its way past one block of keys.
template <class T>
struct Step {
  SoftmaxTile<T>* tile;
  int64_t rows;
  const PackedKeys<T>* keys;
  int64_t pair, block, count;
  float bias;
};

// Takes steps, one after the other: products with the keys, softmax, products with the values.
// Where products have a unit of their own, the softmax of a step runs beside the next step's
// products with keys and the last step's with values; what comes out is the same.
template <class T>
class Attend {
 public:
  const LogitFactor<T> factor;
  explicit Attend(float scale) : factor(scale) {}

  void take(const Step<T>& step) {
    if constexpr (Product<T>::kApart) {
      advance(&step);
    } else {
      NothingBeside nothing;
      Scores<T>& scores = slots_[0].scores;
      multiply_keys(step, scores, nothing);
      for (int64_t i = 0; i < step.rows; i++) make_probabilities(step, scores, i);
      rescale(step, scores);
      add_values(step, scores, nothing);
    }
  }

  // Ends the steps that were taken; until then their tiles are not complete.
  void finish() {
    while (added_ < multiplied_) advance(nullptr);
  }

 private:
  template <class Work>
  void multiply_keys(const Step<T>& step, Scores<T>& scores, Work& beside) {
    const PackedKeys<T>& keys = *step.keys;
    gemm<false>(step.rows, div_up(step.count, kPanel), keys.dim, step.tile->q.get(), keys.dim,
                keys.key_block(step.pair, step.block), keys.dim * kPanel, scores.products, kBlock,
                beside);
  }

  void make_probabilities(const Step<T>& step, Scores<T>& scores, int64_t row) {
    scores.shrink[row] = softmax_row(
        scores.products + row * kBlock, scores.probabilities + row * kBlock, step.count,
        factor.behind, step.bias, step.tile->highest[row], step.tile->total + row * kVector);
  }

  static void rescale(const Step<T>& step, const Scores<T>& scores) {
    const int64_t size = step.keys->dim_padded;
    for (int64_t i = 0; i < step.rows; i++) {
      multiply(step.tile->out + i * size, size, scores.shrink[i]);
    }
  }

  template <class Work>
  void add_values(const Step<T>& step, const Scores<T>& scores, Work& beside) {
    const PackedKeys<T>& keys = *step.keys;
    gemm<true>(step.rows, keys.dim_padded / kPanel, step.count, scores.probabilities.get(), kBlock,
               keys.value_block(step.pair, step.block), kBlock * kPanel, step.tile->out,
               keys.dim_padded, beside);
  }

  // One step's softmax, beside the next one's products with keys and the last one's with values.
  // All three may be of one tile: its output is rescaled when the last step's part is in.
  void advance(const Step<T>* next) {
    Slot* coming = next ? &slot(multiplied_) : nullptr;
    Slot* current = softmaxed_ < multiplied_ ? &slot(softmaxed_) : nullptr;
    Slot* last = added_ < softmaxed_ ? &slot(added_) : nullptr;
    if (coming) coming->step = *next;
    const int64_t rows = current ? current->step.rows : 0;
    const int64_t steps =
        (coming ? keys_steps(coming->step) : 0) + (last ? values_steps(last->step) : 0);
    const auto softmax = [&](int64_t row) {
      make_probabilities(current->step, current->scores, row);
    };
    Beside beside(rows, steps, softmax);
    if (coming) multiply_keys(coming->step, coming->scores, beside);
    if (last) add_values(last->step, last->scores, beside);
    beside.finish();
    if (current) rescale(current->step, current->scores);
    multiplied_ += coming != nullptr;
    softmaxed_ += current != nullptr;
    added_ += last != nullptr;
  }

  static int64_t keys_steps(const Step<T>& step) {
    return product_steps<T>(step.rows, div_up(step.count, kPanel), step.keys->dim);
  }
  static int64_t values_steps(const Step<T>& step) {
    return product_steps<T>(step.rows, step.keys->dim_padded / kPanel, step.count);
  }

  struct Slot {
    Step<T> step;
    Scores<T> scores;
  };
  Slot& slot(int64_t step) { return slots_[step % 3]; }

  Slot slots_[3];
  int64_t multiplied_ = 0, softmaxed_ = 0, added_ = 0;  // steps that have come so far
};

// Attends to the reference segments with those rows only that see them: the others are not touched,
// and what an unseen reference holds (NaN even) cannot reach them.
template <class T>
void attend_references(const Attention& in, int64_t b, int64_t first, int64_t rows,
                       const PackedKeys<T>& keys, int64_t pair, const KeyBlocks& blocks,
                       SoftmaxTile<T>& tile, SoftmaxTile<T>& part, int32_t* which,
                       Attend<T>& attend) {
  int64_t i = 0;
  while (i < blocks.size()) {
    const int64_t segment = blocks[i].segment;
    const float bias = in.bias ? static_cast<float>(in.bias[segment] * kLog2e) : 0.f;
    const int64_t seen = rows_that_see(in, b, first, rows, segment, which);
    SoftmaxTile<T>& on = seen == rows ? tile : part;
    if (seen > 0 && seen < rows) {
      gather_rows(tile.q.get(), keys.dim, which, seen, part.q.get());
      gather_rows(tile.out.get(), keys.dim_padded, which, seen, part.out.get());
      gather_rows(tile.highest.get(), 1, which, seen, part.highest.get());
      gather_rows(tile.total.get(), kVector, which, seen, part.total.get());
    }
    for (; i < blocks.size() && blocks[i].segment == segment; i++) {
      if (seen > 0) attend.take({&on, seen, &keys, pair, i, blocks[i].count, bias});
    }
    attend.finish();
    if (seen > 0 && seen < rows) {
      scatter_rows(part.out, keys.dim_padded, which, seen, tile.out);
      scatter_rows(part.highest, 1, which, seen, tile.highest);
      scatter_rows(part.total, kVector, which, seen, tile.total);
    }
  }
}

// Divides by the softmax's total, gates, and writes a tile of rows. Returns the sum of the logits.
template <class T>
float finish_tile(const AttentionForward& call, const PackedGate* gate, GateScratch* scratch,
                  int64_t b, int64_t h, int64_t first, int64_t rows, SoftmaxTile<T>& tile,
                  int64_t dim_padded) {
  const Attention& in = call.in;
  for (int64_t i = 0; i < rows; i++) {
    float* out = tile.out + i * dim_padded;
    const float total = sum(load(tile.total + i * kVector));
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

// Loads and rotates a tile of queries, and empties its softmax.
template <class T>
void start_tile(const Attention& in, int64_t b, int64_t h, int64_t first, int64_t rows,
                int64_t dim_padded, float factor, float* scratch, SoftmaxTile<T>& tile) {
  load_tile(in.q, in.dtype, in.dim, b, h, first, rows, nullptr, in.rope, scratch);
  multiply(scratch, rows * in.dim, factor);
  pack_left(scratch, rows, in.dim, in.dim, tile.q.get());
  for (int64_t i = 0; i < rows; i++) {
    tile.highest[i] = -__builtin_inff();
    store(tile.total + i * kVector, Vec{});
  }
  std::memset(tile.out, 0, round_up(rows, Product<T>::kRows) * dim_padded * sizeof(float));
}

// Everything the tiles of some heads read (`pair` = b * heads + h - first_head).
template <class T>
struct ForwardHeads {
  const AttentionForward& call;
  const Attention& in;
  int64_t first_head, heads, tiles;
  KeyBlocks video_blocks, ref_blocks;
  PackedKeys<T> video, refs;
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
constexpr int64_t kTogether = 4;

template <class T>
class ForwardWorker {
 public:
  explicit ForwardWorker(const ForwardHeads<T>& heads)
      : at_(heads),
        tiles_{{heads.in.dim, heads.video.dim_padded},
               {heads.in.dim, heads.video.dim_padded},
               {heads.in.dim, heads.video.dim_padded},
               {heads.in.dim, heads.video.dim_padded}},
        part_(heads.in.dim, heads.video.dim_padded),
        attend_(heads.in.scale),
        scratch_(kBlock * heads.in.dim),
        which_(kBlock),
        gate_(heads.gate ? new GateScratch(*heads.gate) : nullptr) {}

  // Rows of the tiles [first_tile, last_tile), at most kTogether.
  void run(int64_t pair, int64_t first_tile, int64_t last_tile, float* logit_sums) {
    const Attention& in = at_.in;
    const int64_t b = pair / at_.heads, h = at_.first_head + pair % at_.heads;
    const int64_t ref_pair = in.ref_batch == 1 ? pair % at_.heads : pair;
    for (int64_t t = first_tile; t < last_tile; t++) {
      start_tile(in, b, h, t * kBlock, rows(t), at_.video.dim_padded, attend_.factor.in_queries,
                 scratch_, tiles_[t - first_tile]);
    }
    for (int64_t i = 0; i < at_.video_blocks.size(); i++) {
      for (int64_t t = first_tile; t < last_tile; t++) {
        attend_.take({&tiles_[t - first_tile], rows(t), &at_.video, pair, i,
                      at_.video_blocks[i].count, 0.f});
      }
    }
    attend_.finish();
    for (int64_t t = first_tile; t < last_tile; t++) {
      SoftmaxTile<T>& tile = tiles_[t - first_tile];
      attend_references(in, b, t * kBlock, rows(t), at_.refs, ref_pair, at_.ref_blocks, tile, part_,
                        which_, attend_);
      logit_sums[(b * in.heads + h) * at_.tiles + t] =
          finish_tile(at_.call, at_.gate.get(), gate_.get(), b, h, t * kBlock, rows(t), tile,
                      at_.video.dim_padded);
    }
  }

 private:
  int64_t rows(int64_t t) const { return min_of(kBlock, at_.in.rows - t * kBlock); }

  [[maybe_unused]] typename Product<T>::Unit unit_;
  const ForwardHeads<T>& at_;
  SoftmaxTile<T> tiles_[kTogether];
  SoftmaxTile<T> part_;
  Attend<T> attend_;
  Buffer<float> scratch_;
  Buffer<int32_t> which_;
  std::unique_ptr<GateScratch> gate_;
};

template <class T>
void attention_forward_in(const AttentionForward& call, const Pool& pool) {
  const Attention& in = call.in;
  const int64_t group = heads_at_once(in, pool);
  ForwardHeads<T> at(call, group);
  Buffer<float> logit_sums(in.batch * in.heads * at.tiles);
  Buffer<uint32_t> all_seen(in.batch), seen(in.ref_batch);
  for (int64_t b = 0; b < in.batch; b++) all_seen[b] = ~0u;
  for (int64_t b = 0; b < in.ref_batch; b++) seen[b] = segments_seen(in, b);

  for (int64_t h0 = 0; h0 < in.heads; h0 += group) {
    at.first_head = h0;
    at.heads = min_of(group, in.heads - h0);
    const int64_t pairs = in.batch * at.heads;
    pack_keys(in, in.k, in.v, in.rope, at.video_blocks, in.batch, h0, at.heads, all_seen, pool,
              at.video);
    pack_keys(in, in.k_ref, in.v_ref, in.ref_rope, at.ref_blocks, in.ref_batch, h0, at.heads, seen,
              pool, at.refs);
    // Fewer tiles at a time where that keeps all threads busy.
    const int64_t share = pairs * at.tiles / (4 * pool.threads);
    const int64_t together = max_of(1, min_of(kTogether, share));
    const int64_t groups = div_up(at.tiles, together);
    parallel(pool, pairs * groups, [&](Queue& queue) {
      ForwardWorker<T> worker(at);
      for (int64_t item; (item = queue.next()) < queue.items;) {
        const int64_t first = item % groups * together;
        worker.run(item / groups, first, min_of(first + together, at.tiles), logit_sums);
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

void attention_forward(const AttentionForward& call, const Pool& pool) {
#if defined(GENHOI_BFLOAT16)
  if (multiplies_bfloat16(call.in)) return attention_forward_in<BFloat16>(call, pool);
#endif
  attention_forward_in<float>(call, pool);
}

}  // namespace
}  // namespace genhoi::cpu
