// Backward pass, recomputed from the LSE (docs/op.md, "Backward"), in one sweep over blocks of keys
// against tiles of query rows. A block's dK and dV belong to one thread; dQ of a tile is added to
// by all blocks, in the order of the blocks, for which threads wait. Gradients of shared weights
// are summed over fixed partitions, in double, in a fixed order: the result does not depend on the
// number of threads.
#pragma once

#include <sched.h>

#include <memory>
#include <type_traits>

#include "flow_gate.h"

namespace genhoi::cpu {
namespace {

constexpr int64_t kMaxChunks = 16;  // partitions of a head's rows for the gate's weight gradients

// Query rows as a sweep over keys reads them, in tiles of kBlock; also where it leaves their dQ.
// Either all rows of each sample, or those that see a reference.
template <class T>
struct QueryRows {
  int64_t dim, dim_padded, dim_rows, tiles;  // tiles: room for so many a pair
  // Right-hand sides; q rotated and times LogitFactor::in_queries.
  Buffer<T> q_transposed, q, grad_o_transposed, grad_o;
  Buffer<float> high, low, delta;  // [pairs, tiles, kBlock]; see load_stats
  Buffer<float> dq;                // [pairs, tiles, dim_rows, kBlock]: dQ^T
  Buffer<int32_t> added;           // [pairs, tiles]: blocks of keys whose part of dQ is in
  Buffer<int64_t> count;           // [pairs]: rows

  QueryRows(int64_t pairs, int64_t rows, int64_t head_dim)
      : dim(head_dim),
        dim_padded(round_up(head_dim, kPanel)),
        dim_rows(round_up(head_dim, Product<T>::kRows)),
        tiles(div_up(rows, kBlock)),
        q_transposed(pairs * tiles * kBlock * dim),
        q(pairs * tiles * kBlock * dim_padded),
        grad_o_transposed(pairs * tiles * kBlock * dim),
        grad_o(pairs * tiles * kBlock * dim_padded),
        high(pairs * tiles * kBlock),
        low(pairs * tiles * kBlock),
        delta(pairs * tiles * kBlock),
        dq(pairs * tiles * dim_rows * kBlock),
        added(pairs * tiles),
        count(pairs) {}

  int64_t rows_of(int64_t pair, int64_t t) const {
    return min_of(kBlock, count[pair] - t * kBlock);
  }

  void pack(int64_t at, const float* q_tile, const float* grad_o_tile, int64_t rows) const {
    pack_right_transposed(q_tile, rows, dim, dim, q_transposed + at * kBlock * dim);
    pack_right(q_tile, rows, dim, dim, kBlock, q + at * kBlock * dim_padded);
    pack_right_transposed(grad_o_tile, rows, dim, dim, grad_o_transposed + at * kBlock * dim);
    pack_right(grad_o_tile, rows, dim, dim, kBlock, grad_o + at * kBlock * dim_padded);
    std::memset(dq + at * dim_rows * kBlock, 0, dim_rows * kBlock * sizeof(float));
    added[at] = 0;
  }

  // bias - lse in units of log2 e, in two parts, and delta; padding gets probability 0.
  void load_stats(int64_t at, const float* lse, const float* deltas, const int32_t* which,
                  int64_t rows, double bias) const {
    for (int64_t j = 0; j < kBlock; j++) {
      const int64_t row = which && j < rows ? which[j] : j;
      const Shift shift(j < rows ? bias - lse[row] * kLog2e : -__builtin_inf());
      high[at * kBlock + j] = shift.high;
      low[at * kBlock + j] = shift.low;
      delta[at * kBlock + j] = j < rows ? deltas[row] : 0.f;
    }
  }
};

// What the sweeps share of some heads (`pair` = b * heads + h - first_head).
struct BackwardHeads {
  const AttentionBackward& call;
  const Attention& in;
  int64_t first_head, heads, tiles, chunks;
  Buffer<float> grad_o;      // [pairs, rows, dim]
  Buffer<float> lse, delta;  // [pairs, rows]; sum(dO * O) - dlse

  BackwardHeads(const AttentionBackward& c, int64_t group)
      : call(c),
        in(c.in),
        first_head(0),
        heads(group),
        tiles(div_up(c.in.rows, kBlock)),
        chunks(min_of(tiles, kMaxChunks)),
        grad_o(in.batch * group * in.rows * in.dim),
        lse(in.batch * group * in.rows),
        delta(in.batch * group * in.rows) {}
};

// Gradient of a tile's attention rows, through the gate if there is one: dO [rows, dim].
struct GateStep {
  const PackedGate& gate;
  GateScratch scratch;
  GateGradScratch grad_scratch;
  Buffer<float> grad_logit;
  explicit GateStep(const PackedGate& g)
      : gate(g), scratch(g), grad_scratch(g), grad_logit(kBlock) {}

  void run(const AttentionBackward& call, int64_t b, int64_t h, int64_t rows, const float* o,
           float* grad_o, double* sums) {
    const Attention& in = call.in;
    gate_logits(gate, o, in.dim, rows, scratch);
    for (int64_t i = 0; i < rows; i++) {
      if (in.gate_mode == GateMode::kSum) {
        grad_logit[i] = call.grad_gate_sum ? call.grad_gate_sum[b * in.heads + h] : 0.f;
        continue;
      }
      const float g = sigmoid(scratch.logits[i]);
      const double along = dot(grad_o + i * in.dim, o + i * in.dim, in.dim);
      multiply(grad_o + i * in.dim, in.dim, g);
      grad_logit[i] = static_cast<float>(along) * g * (1.f - g);
    }
    gate_backward(gate, grad_logit, rows, scratch, grad_scratch, grad_o, GateSums(gate, sums));
  }
};

// Per tile of rows: dO and delta, and all that a sweep over the video's keys reads. `partials`
// [pairs, chunks, size], zeroed.
template <class T>
void prepare_rows(const BackwardHeads& at, const PackedGate* gate, double* partials,
                  const Pool& pool, const QueryRows<T>& to) {
  const AttentionBackward& call = at.call;
  const Attention& in = at.in;
  for (int64_t pair = 0; pair < in.batch * at.heads; pair++) to.count[pair] = in.rows;
  parallel(pool, in.batch * at.heads * at.chunks, [&](Queue& queue) {
    Buffer<float> q(kBlock * in.dim), o(kBlock * in.dim);
    std::unique_ptr<GateStep> step(gate ? new GateStep(*gate) : nullptr);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const int64_t chunk = item % at.chunks, pair = item / at.chunks;
      const int64_t b = pair / at.heads, h = at.first_head + pair % at.heads;
      for (int64_t t = at.tiles * chunk / at.chunks; t < at.tiles * (chunk + 1) / at.chunks; t++) {
        const int64_t first = t * kBlock, rows = min_of(kBlock, in.rows - first);
        const int64_t row = pair * in.rows + first;
        load_tile(call.o, in.dtype, in.dim, b, h, first, rows, nullptr, nullptr, o);
        float* grad_o = at.grad_o + row * in.dim;
        if (call.grad_out.data) {
          load_tile(call.grad_out, in.dtype, in.dim, b, h, first, rows, nullptr, nullptr, grad_o);
        } else {
          std::memset(grad_o, 0, rows * in.dim * sizeof(float));
        }
        if (gate) {
          step->run(call, b, h, rows, o, grad_o, partials + item * GateSums::size(*gate));
        }
        const int64_t in_lse = (b * in.heads + h) * in.rows + first;
        for (int64_t i = 0; i < rows; i++) {
          const double along = dot(grad_o + i * in.dim, o + i * in.dim, in.dim);
          const float lse = call.lse[in_lse + i];
          at.delta[row + i] =
              static_cast<float>(along - (call.grad_lse ? call.grad_lse[in_lse + i] : 0.f));
          // A row without any key: +inf makes every probability 0.
          at.lse[row + i] = lse == -__builtin_inff() ? __builtin_inff() : lse;
        }
        load_tile(in.q, in.dtype, in.dim, b, h, first, rows, nullptr, in.rope, q);
        multiply(q, rows * in.dim, LogitFactor<T>(in.scale).in_queries);
        to.pack(pair * to.tiles + t, q, grad_o, rows);
        to.load_stats(pair * to.tiles + t, at.lse + row, at.delta + row, nullptr, rows, 0.);
      }
    }
  });
}

// The rows that see one segment, sample by sample: their numbers.
struct SeenRows {
  Buffer<int32_t> which;  // [batch, rows]
  Buffer<int64_t> count;  // [batch]
  int64_t most = 0;
  SeenRows(const Attention& in, int64_t segment) : which(in.batch * in.rows), count(in.batch) {
    for (int64_t b = 0; b < in.batch; b++) {
      count[b] = rows_that_see(in, b, 0, in.rows, segment, which + b * in.rows);
      most = max_of(most, count[b]);
    }
  }
};

template <class T>
void prepare_seen_rows(const BackwardHeads& at, const SeenRows& seen, double bias, const Pool& pool,
                       const QueryRows<T>& to) {
  const Attention& in = at.in;
  for (int64_t pair = 0; pair < in.batch * at.heads; pair++) {
    to.count[pair] = seen.count[pair / at.heads];
  }
  parallel(pool, in.batch * at.heads * to.tiles, [&](Queue& queue) {
    Buffer<float> q(kBlock * in.dim), grad_o(kBlock * in.dim);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const int64_t t = item % to.tiles, pair = item / to.tiles, b = pair / at.heads;
      const int64_t rows = to.rows_of(pair, t);
      if (rows <= 0) continue;
      const int32_t* which = seen.which + b * in.rows + t * kBlock;
      load_tile(in.q, in.dtype, in.dim, b, at.first_head + pair % at.heads, 0, rows, which, in.rope,
                q);
      multiply(q, rows * in.dim, LogitFactor<T>(in.scale).in_queries);
      gather_rows(at.grad_o + pair * in.rows * in.dim, in.dim, which, rows, grad_o.get());
      to.pack(item, q, grad_o, rows);
      to.load_stats(item, at.lse + pair * in.rows, at.delta + pair * in.rows, which, rows, bias);
    }
  });
}

// Adds dQ of the rows that see a segment to that of all rows.
template <class T>
void add_seen_rows(const BackwardHeads& at, const SeenRows& seen, const QueryRows<T>& from,
                   const Pool& pool, const QueryRows<T>& to) {
  const Attention& in = at.in;
  parallel(pool, in.batch * at.heads * from.tiles, [&](Queue& queue) {
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const int64_t t = item % from.tiles, pair = item / from.tiles;
      const int32_t* which = seen.which + pair / at.heads * in.rows + t * kBlock;
      for (int64_t j = 0; j < from.rows_of(pair, t); j++) {
        const float* x = from.dq + item * from.dim_rows * kBlock + j;
        float* y = to.dq + (pair * to.tiles + which[j] / kBlock) * to.dim_rows * kBlock +
                   which[j] % kBlock;
        for (int64_t d = 0; d < in.dim; d++) y[d * kBlock] += x[d * kBlock];
      }
    }
  });
}

// Writes a tile of gradients of q or k: times `factor`, rotated back.
inline void store_grad_tile(float* grad, int64_t stride, const Attention& in, int64_t b, int64_t h,
                            int64_t first, int64_t rows, const Rotation* rope, float factor,
                            const Rows& to) {
  alignas(64) float angles[kMaxDim];
  for (int64_t i = 0; i < rows; i++) {
    float* x = grad + i * stride;
    for (int64_t d = 0; d < in.dim; d++) x[d] *= factor;
    if (rope) {
      load_angles(*rope, first + i, h, angles);
      rotate(x, angles, in.dim, -1.f);
    }
    store_row(x, in.dtype, in.dim, row_at(to, in.dtype, b, first + i, h));
  }
}

// A block of keys on its way through tiles of query rows. Scores are transposed, [keys, rows], so
// that what differs from row to row lies along a vector.
template <class T>
class KeySweep {
 public:
  explicit KeySweep(const Attention& in)
      : in_(in),
        dim_padded_(round_up(in.dim, kPanel)),
        factor_(in.scale),
        loaded_(kBlock * in.dim),
        transposed_(in.dim * kBlock),
        k_(kBlock * in.dim),
        v_(kBlock * in.dim),
        k_transposed_(round_up(in.dim, Product<T>::kRows) * kBlock),
        dk_(kBlock * dim_padded_),
        dv_(kBlock * dim_padded_),
        p_(kBlock * kBlock),
        ds_(kBlock * kBlock),
        ds_right_(kBlock * kBlock) {}

  void start(const Rows& keys, const Rows& values, const Rotation* rope, int64_t b, int64_t h,
             const KeyBlock& block) {
    count_ = block.count;
    total_ = 0.;
    const int64_t dim = in_.dim;
    load_tile(values, in_.dtype, dim, b, h, block.first, count_, nullptr, nullptr, loaded_);
    pack_left(loaded_.get(), count_, dim, dim, v_.get());
    load_tile(keys, in_.dtype, dim, b, h, block.first, count_, nullptr, rope, loaded_);
    pack_left(loaded_.get(), count_, dim, dim, k_.get());
    for (int64_t d = 0; d < dim; d++) {
      for (int64_t j = 0; j < kBlock; j++) {
        transposed_[d * kBlock + j] = j < count_ ? loaded_[j * dim + d] : 0.f;
      }
    }
    pack_left(transposed_.get(), dim, kBlock, kBlock, k_transposed_.get());
    std::memset(dk_, 0, kBlock * dim_padded_ * sizeof(float));
    std::memset(dv_, 0, kBlock * dim_padded_ * sizeof(float));
  }

  // Takes a tile of query rows: adds to dK and dV, and to the tile's dQ when all blocks before this
  // one, number `turn`, have. Where products have a unit of their own, a tile's scores are made
  // beside the products of the next one, and what they add to is complete after finish().
  void take(const QueryRows<T>& rows, int64_t at, int64_t columns, int32_t turn) {
    const Tile tile{&rows, at, columns, turn};
    if constexpr (Product<T>::kApart) {
      advance(&tile);
    } else {
      NothingBeside nothing;
      multiply_keys(tile, products_[0], nothing);
      for (int64_t i = 0; i < slices(); i++) make_scores(tile, products_[0], i);
      add_gradients(tile);
    }
  }

  // Writes dK and dV. Returns the sum of dS over the tiles taken since start().
  double finish(const Rotation* rope, int64_t b, int64_t h, const KeyBlock& block, const Rows& to_k,
                const Rows& to_v) {
    if (current_.rows) advance(nullptr);
    // Of a factor that q carries, dK keeps the scale.
    const float scale = factor_.in_queries == 1.f ? in_.scale : static_cast<float>(kLn2);
    store_grad_tile(dk_, dim_padded_, in_, b, h, block.first, count_, rope, scale, to_k);
    store_grad_tile(dv_, dim_padded_, in_, b, h, block.first, count_, nullptr, 1.f, to_v);
    return total_;
  }

 private:
  struct Tile {
    const QueryRows<T>* rows;
    int64_t at, columns;
    int32_t turn;
  };
  struct Products {
    Buffer<float> scores, grad_p;
    Products() : scores(kBlock * kBlock), grad_p(kBlock * kBlock) {}
  };

  void advance(const Tile* next) {
    Products &coming = products_[taken_ % 2], &current = products_[(taken_ + 1) % 2];
    const int64_t steps =
        next ? 2 * product_steps<T>(count_, div_up(next->columns, kPanel), in_.dim) : 0;
    const auto slice = [&](int64_t i) { make_scores(current_, current, i); };
    Beside beside(current_.rows ? slices() : 0, steps, slice);
    if (next) multiply_keys(*next, coming, beside);
    beside.finish();
    if (current_.rows) add_gradients(current_);
    current_ = next ? *next : Tile{};
    taken_++;
  }

  template <class Work>
  void multiply_keys(const Tile& tile, Products& to, Work& beside) {
    const QueryRows<T>& rows = *tile.rows;
    const int64_t panels = div_up(tile.columns, kPanel), dim = in_.dim, at = tile.at * kBlock * dim;
    gemm<false>(count_, panels, dim, k_.get(), dim, rows.q_transposed + at, dim * kPanel, to.scores,
                kBlock, beside);
    gemm<false>(count_, panels, dim, v_.get(), dim, rows.grad_o_transposed + at, dim * kPanel,
                to.grad_p, kBlock, beside);
  }

  void add_gradients(const Tile& tile) {
    const QueryRows<T>& rows = *tile.rows;
    const int64_t panels = div_up(tile.columns, kPanel), at = tile.at;
    gemm<true>(count_, dim_padded_ / kPanel, tile.columns, p_.get(), kBlock,
               rows.grad_o + at * kBlock * dim_padded_, kBlock * kPanel, dv_, dim_padded_);
    gemm<true>(count_, dim_padded_ / kPanel, tile.columns, ds_.get(), kBlock,
               rows.q + at * kBlock * dim_padded_, kBlock * kPanel, dk_, dim_padded_);
    wait_for(rows.added + at, tile.turn);
    gemm<true>(in_.dim, panels, count_, k_transposed_.get(), kBlock, ds_right_.get(),
               kBlock * kPanel, rows.dq + at * rows.dim_rows * kBlock, kBlock);
    __atomic_store_n(rows.added + at, tile.turn + 1, __ATOMIC_RELEASE);
    total_ += sum(tile_total_);
    tile_total_ = Vec{};
  }

  int64_t slices() const { return round_up(count_, Product<T>::kDepth) / Product<T>::kPair; }

  // P = exp2(slope * product + bias - lse) and dS = P * (dP - delta) of kPair keys, as left-hand
  // sides, and dS also as a right-hand side.
  void make_scores(const Tile& tile, const Products& products, int64_t slice) {
    using Polynomial = std::conditional_t<sizeof(T) == 2, Coarse, Exact>;
    constexpr int kPair = Product<T>::kPair;
    const QueryRows<T>& rows = *tile.rows;
    const float *high = rows.high + tile.at * kBlock, *low = rows.low + tile.at * kBlock;
    const float* delta = rows.delta + tile.at * kBlock;
    const Vec slope = splat(factor_.behind);
    const int64_t i = slice * kPair;
    Vec total = tile_total_;
    for (int64_t j = 0; j < round_up(tile.columns, kPanel); j += kVector) {
      Vec ds[kPair];
      for (int s = 0; s < kPair; s++) {
        const int64_t to = (i + s) * kBlock + j;
        if (i + s < count_) {
          const Vec p =
              exp2<Polynomial>(load(products.scores + to) * slope + load(high + j) + load(low + j));
          ds[s] = p * (load(products.grad_p + to) - load(delta + j));
          store(p_ + to, p);
          store(ds_ + to, ds[s]);
          total += ds[s];
        } else {
          ds[s] = Vec{};
        }
      }
      store_right(ds, ds_right_ + j / kPanel * kBlock * kPanel + i * kPanel + j % kPanel * kPair);
    }
    tile_total_ = total;
  }

  static void store_right(const Vec (&x)[1], float* to) { store(to, x[0]); }
  static void store_right(const Vec (&x)[2], BFloat16* to) {
    const IntVec pairs = bfloat16_pairs(x[0], x[1]);
    std::memcpy(static_cast<void*>(to), &pairs, sizeof pairs);
  }

  // The thread that has an earlier block waits for none with a later one, so this ends.
  static void wait_for(const int32_t* added, int32_t turn) {
    for (int spins = 0; __atomic_load_n(added, __ATOMIC_ACQUIRE) != turn; spins++) {
      if (spins > 1000) sched_yield();
    }
  }

  const Attention& in_;
  int64_t dim_padded_;
  LogitFactor<T> factor_;
  int64_t count_ = 0;
  Buffer<float> loaded_, transposed_;
  Buffer<T> k_, v_, k_transposed_;  // left-hand sides
  Buffer<float> dk_, dv_;
  Products products_[2];
  Buffer<T> p_, ds_, ds_right_;
  Tile current_{};  // of which the products are there; rows null: none
  int64_t taken_ = 0;
  Vec tile_total_{};
  double total_ = 0.;
};

// The keys of one source, and where their gradients go.
struct KeySource {
  const Rows &k, &v;
  const Rotation* rope;
  const KeyBlocks& blocks;
  int64_t first_block, last_block;
  int64_t batch;  // 1: shared by all samples
  const Rows &dk, &dv;
};

// All query rows against all keys of a source: dK, dV, dQ, and per block the sum of dS, sums
// [batch * heads, blocks], for batch and blocks of the source.
template <class T>
void sweep_keys(const BackwardHeads& at, const KeySource& keys, const QueryRows<T>& rows,
                double* sums, const Pool& pool) {
  const int64_t blocks = keys.last_block - keys.first_block, key_pairs = keys.batch * at.heads;
  const int64_t samples = at.in.batch / max_of(1, keys.batch);
  Buffer<Queue> left(key_pairs);  // blocks of each head
  for (int64_t i = 0; i < key_pairs; i++) left[i] = {blocks};
  parallel(pool, key_pairs * blocks, [&](Queue& queue) {
    [[maybe_unused]] const typename Product<T>::Unit unit;
    KeySweep<T> sweep(at.in);
    const auto sweep_head = [&](int64_t key_pair) {
      const int64_t key_b = key_pair / at.heads, h = key_pair % at.heads;
      for (int64_t turn; (turn = left[key_pair].next()) < blocks;) {
        const KeyBlock& block = keys.blocks[keys.first_block + turn];
        sweep.start(keys.k, keys.v, keys.rope, key_b, at.first_head + h, block);
        for (int64_t b = key_b * samples; b < (key_b + 1) * samples; b++) {
          const int64_t pair = b * at.heads + h;
          for (int64_t t = 0; t * kBlock < rows.count[pair]; t++) {
            sweep.take(rows, pair * rows.tiles + t, rows.rows_of(pair, t),
                       static_cast<int32_t>(turn));
          }
        }
        sums[key_pair * blocks + turn] =
            sweep.finish(keys.rope, key_b, at.first_head + h, block, keys.dk, keys.dv);
      }
    };
    // A head to each thread, so that its dQ stays in that thread's caches; then what others have
    // left.
    int64_t ticket;
    while ((ticket = queue.next()) < key_pairs) sweep_head(ticket);
    for (int64_t i = 0; i < key_pairs; i++) sweep_head((ticket + i) % key_pairs);
  });
}

// Sums of everything that heads share, in double and in a fixed order.
class SharedGrads {
 public:
  SharedGrads(const Attention& in, const PackedGate* gate)
      : segments_(in.segments),
        gate_(gate),
        gate_size_(gate ? GateSums::size(*gate) : 0),
        bias_(in.segments),
        weights_(gate_size_) {
    for (int64_t i = 0; i < segments_; i++) bias_[i] = 0.;
    for (int64_t i = 0; i < gate_size_; i++) weights_[i] = 0.;
  }
  int64_t gate_size() const { return gate_size_; }

  void add_bias(int64_t segment, const double* sums, int64_t count) {
    for (int64_t i = 0; i < count; i++) bias_[segment] += sums[i];
  }
  void add_gate(const double* partials, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
      for (int64_t j = 0; j < gate_size_; j++) weights_[j] += partials[i * gate_size_ + j];
    }
  }

  void write(const AttentionBackward& call) const {
    if (call.dbias) copy(bias_, segments_, call.dbias);
    if (!gate_) return;
    const GateGrad& to = call.dgate;
    const PackedGate& g = *gate_;
    const double* from = weights_;
    copy(from, g.dim, to.norm_weight);
    copy(from + g.dim, g.dim, to.norm_bias);
    from += 2 * g.dim;
    for (int64_t j = 0; j < g.hidden; j++) {
      copy(from + j * g.dim_padded, g.dim, to.fc1_weight + j * g.dim);
    }
    from += round_up(g.hidden, kTileRows) * g.dim_padded;
    copy(from, g.hidden, to.fc1_bias);
    copy(from + g.hidden, g.hidden, to.fc2_weight);
    copy(from + 2 * g.hidden, 1, to.fc2_bias);
  }

 private:
  static void copy(const double* from, int64_t n, float* to) {
    for (int64_t i = 0; i < n; i++) to[i] = static_cast<float>(from[i]);
  }
  int64_t segments_;
  const PackedGate* gate_;
  int64_t gate_size_;
  Buffer<double> bias_, weights_;
};

// The references, one segment after the other: only with the rows that see it.
template <class T>
void sweep_references(const BackwardHeads& at, const KeyBlocks& blocks, const Pool& pool,
                      const QueryRows<T>& rows, SharedGrads& shared) {
  const Attention& in = at.in;
  Buffer<double> sums(in.ref_batch * at.heads * blocks.size());
  for (int64_t first = 0, last; first < blocks.size(); first = last) {
    const int64_t segment = blocks[first].segment;
    for (last = first; last < blocks.size() && blocks[last].segment == segment;) last++;
    const SeenRows seen(in, segment);
    const QueryRows<T> some(in.batch * at.heads, seen.most, in.dim);
    const double bias = in.bias ? in.bias[segment] * kLog2e : 0.;
    prepare_seen_rows(at, seen, bias, pool, some);
    sweep_keys(at,
               {in.k_ref, in.v_ref, in.ref_rope, blocks, first, last, in.ref_batch, at.call.dk_ref,
                at.call.dv_ref},
               some, sums, pool);
    shared.add_bias(segment, sums, in.ref_batch * at.heads * (last - first));
    add_seen_rows(at, seen, some, pool, rows);
  }
}

template <class T>
void store_query_grads(const BackwardHeads& at, const QueryRows<T>& rows, const Pool& pool) {
  const Attention& in = at.in;
  parallel(pool, in.batch * at.heads * at.tiles, [&](Queue& queue) {
    Buffer<float> dq(kBlock * in.dim);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const int64_t t = item % at.tiles, pair = item / at.tiles, count = rows.rows_of(pair, t);
      const float* transposed = rows.dq + item * rows.dim_rows * kBlock;
      for (int64_t i = 0; i < count; i++) {
        for (int64_t d = 0; d < in.dim; d++) dq[i * in.dim + d] = transposed[d * kBlock + i];
      }
      store_grad_tile(dq, in.dim, in, pair / at.heads, at.first_head + pair % at.heads, t * kBlock,
                      count, in.rope, in.scale, at.call.dq);
    }
  });
}

// A head for each thread, but not more than half of them (or what keeps all threads busy), so that
// their memory stays within a few times that of q.
inline int64_t backward_heads_at_once(const Attention& in, const Pool& pool) {
  const int64_t of_threads = div_up(pool.threads, max_of(1, in.batch));
  return max_of(heads_at_once(in, pool), min_of(of_threads, div_up(in.heads, 2)));
}

template <class T>
void attention_backward_in(const AttentionBackward& call, const Pool& pool) {
  const Attention& in = call.in;
  const KeyBlocks video_blocks(&in.keys, 1), ref_blocks(in.lengths, in.segments);
  std::unique_ptr<const PackedGate> gate;
  if (in.gate_mode != GateMode::kNone) gate.reset(new PackedGate(in.gate, in.dim));
  SharedGrads shared(in, gate.get());
  const int64_t group = backward_heads_at_once(in, pool), pairs = in.batch * group;
  BackwardHeads at(call, group);
  const QueryRows<T> rows(pairs, in.rows, in.dim);
  Buffer<double> partials(pairs * at.chunks * shared.gate_size());
  Buffer<double> unused_sums(pairs * video_blocks.size());

  for (int64_t h0 = 0; h0 < in.heads; h0 += group) {
    at.first_head = h0;
    at.heads = min_of(group, in.heads - h0);
    const int64_t chunks = in.batch * at.heads * at.chunks;
    std::memset(partials, 0, chunks * shared.gate_size() * sizeof(double));
    prepare_rows(at, gate.get(), partials, pool, rows);
    shared.add_gate(partials, chunks);
    sweep_keys(
        at, {in.k, in.v, in.rope, video_blocks, 0, video_blocks.size(), in.batch, call.dk, call.dv},
        rows, unused_sums, pool);
    sweep_references(at, ref_blocks, pool, rows, shared);
    store_query_grads(at, rows, pool);
  }
  shared.write(call);
}

void attention_backward(const AttentionBackward& call, const Pool& pool) {
#if defined(GENHOI_BFLOAT16)
  if (multiplies_bfloat16(call.in)) return attention_backward_in<BFloat16>(call, pool);
#endif
  attention_backward_in<float>(call, pool);
}

}  // namespace
}  // namespace genhoi::cpu
