// Backward pass, recomputed from the LSE (docs/op.md, "Backward"). Two sweeps, so that nothing is
// summed by two threads: one over tiles of queries for dQ, one over tiles of keys for dK and dV.
// Gradients of shared weights are summed over fixed partitions, in double, in a fixed order: the
// result does not depend on the number of threads.
#pragma once

#include <memory>

#include "flow_gate.h"

namespace genhoi::cpu {
namespace {

constexpr int64_t kMaxChunks = 16;  // partitions of a head's rows for the gate's weight gradients

// A matrix cut into blocks of kBlock rows, each packed both ways.
struct PackedBothWays {
  int64_t blocks, dim, dim_padded;
  Buffer<float> transposed, rows;
  PackedBothWays(int64_t pairs, int64_t blocks_of_head, int64_t head_dim)
      : blocks(blocks_of_head),
        dim(head_dim),
        dim_padded(round_up(head_dim, kPanel)),
        transposed(pairs * blocks * kBlock * dim),
        rows(pairs * blocks * kBlock * dim_padded) {}
  float* transposed_block(int64_t i) const { return transposed + i * kBlock * dim; }
  float* rows_block(int64_t i) const { return rows + i * kBlock * dim_padded; }
  void pack(const float* x, int64_t count, int64_t i) const {
    pack_transposed(x, count, dim, dim, transposed_block(i));
    pack_rows(x, count, dim, dim, kBlock, rows_block(i));
  }
};

// Everything the two sweeps read of some heads (`pair` = b * heads + h - first_head).
struct BackwardHeads {
  const AttentionBackward& call;
  const Attention& in;
  int64_t first_head, heads, tiles, chunks;
  const KeyBlocks &video_blocks, &ref_blocks;
  PackedBothWays q, grad_o;           // q rotated and scaled by scale * log2 e
  PackedBothWays k, v, k_ref, v_ref;  // of v only `transposed` is read
  Buffer<float> grad_o_rows;          // [pairs, rows, dim]
  Buffer<float> lse, delta;           // [pairs, rows]: lse * log2 e; sum(dO * O) - dlse

  BackwardHeads(const AttentionBackward& c, int64_t group, const KeyBlocks& video,
                const KeyBlocks& refs)
      : call(c),
        in(c.in),
        first_head(0),
        heads(group),
        tiles(div_up(c.in.rows, kBlock)),
        chunks(min_of(tiles, kMaxChunks)),
        video_blocks(video),
        ref_blocks(refs),
        q(in.batch * group, tiles, in.dim),
        grad_o(in.batch * group, tiles, in.dim),
        k(in.batch * group, video.size(), in.dim),
        v(in.batch * group, video.size(), in.dim),
        k_ref(in.ref_batch * group, refs.size(), in.dim),
        v_ref(in.ref_batch * group, refs.size(), in.dim),
        grad_o_rows(in.batch * group * in.rows * in.dim),
        lse(in.batch * group * in.rows),
        delta(in.batch * group * in.rows) {}

  float q_factor() const { return static_cast<float>(in.scale * kLog2e); }
  int64_t ref_pair(int64_t pair) const { return in.ref_batch == 1 ? pair % heads : pair; }
};

inline void pack_both_ways(const BackwardHeads& at, const Rows& x, const Rotation* rope,
                           const KeyBlocks& blocks, int64_t batches, const Pool& pool,
                           const PackedBothWays& to) {
  const Attention& in = at.in;
  parallel(pool, batches * at.heads * blocks.size(), [&](Queue& queue) {
    Buffer<float> tile(kBlock * in.dim);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const int64_t block = item % blocks.size(), pair = item / blocks.size();
      load_tile(x, in.dtype, in.dim, pair / at.heads, at.first_head + pair % at.heads,
                blocks[block].first, blocks[block].count, nullptr, rope, 1.f, tile);
      to.pack(tile, blocks[block].count, item);
    }
  });
}

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
      double along = 0.;
      for (int64_t d = 0; d < in.dim; d++) {
        along += grad_o[i * in.dim + d] * o[i * in.dim + d];
        grad_o[i * in.dim + d] *= g;
      }
      grad_logit[i] = static_cast<float>(along) * g * (1.f - g);
    }
    gate_backward(gate, grad_logit, rows, scratch, grad_scratch, grad_o, GateSums(gate, sums));
  }
};

// Per tile of rows: dO, delta, and q and dO packed. `partials` [pairs, chunks, size], zeroed.
inline void prepare_rows(const BackwardHeads& at, const PackedGate* gate, double* partials,
                         const Pool& pool) {
  const AttentionBackward& call = at.call;
  const Attention& in = at.in;
  parallel(pool, in.batch * at.heads * at.chunks, [&](Queue& queue) {
    Buffer<float> tile(kBlock * in.dim), o(kBlock * in.dim);
    std::unique_ptr<GateStep> step(gate ? new GateStep(*gate) : nullptr);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const int64_t chunk = item % at.chunks, pair = item / at.chunks;
      const int64_t b = pair / at.heads, h = at.first_head + pair % at.heads;
      for (int64_t t = at.tiles * chunk / at.chunks; t < at.tiles * (chunk + 1) / at.chunks; t++) {
        const int64_t first = t * kBlock, rows = min_of(kBlock, in.rows - first);
        load_tile(in.q, in.dtype, in.dim, b, h, first, rows, nullptr, in.rope, at.q_factor(), tile);
        at.q.pack(tile, rows, pair * at.tiles + t);
        load_tile(call.o, in.dtype, in.dim, b, h, first, rows, nullptr, nullptr, 1.f, o);
        float* grad_o = at.grad_o_rows + (pair * in.rows + first) * in.dim;
        if (call.grad_out.data) {
          load_tile(call.grad_out, in.dtype, in.dim, b, h, first, rows, nullptr, nullptr, 1.f,
                    grad_o);
        } else {
          std::memset(grad_o, 0, rows * in.dim * sizeof(float));
        }
        if (gate) {
          step->run(call, b, h, rows, o, grad_o, partials + item * GateSums::size(*gate));
        }
        at.grad_o.pack(grad_o, rows, pair * at.tiles + t);
        const int64_t in_lse = (b * in.heads + h) * in.rows + first;
        for (int64_t i = 0; i < rows; i++) {
          double along = 0.;
          for (int64_t d = 0; d < in.dim; d++) along += grad_o[i * in.dim + d] * o[i * in.dim + d];
          const float lse = call.lse[in_lse + i];
          at.delta[pair * in.rows + first + i] =
              static_cast<float>(along - (call.grad_lse ? call.grad_lse[in_lse + i] : 0.f));
          // A row without any key: +inf makes every probability 0.
          at.lse[pair * in.rows + first + i] = lse == -__builtin_inff() ? __builtin_inff() : lse;
        }
      }
    }
  });
}

// dS = P * (dP - delta) over one row of a tile of queries; returns its sum (the bias's gradient).
inline float score_grad_row(float* logits, const float* grad_p, int64_t count, Shift shift,
                            float delta) {
  Vec total{};
  const int64_t padded = round_up(count, kVector);
  for (int64_t j = count; j < padded; j++) logits[j] = -__builtin_inff();
  for (int64_t j = 0; j < padded; j += kVector) {
    const Vec p = exp2(load(logits + j) + splat(shift.high) + splat(shift.low));
    const Vec ds = p * (load(grad_p + j) - splat(delta));
    total += ds;
    store(logits + j, ds);
  }
  return sum(total);
}

struct QuerySweep {
  Buffer<float> q, grad_o, dq, lse, delta;
  QuerySweep(int64_t dim, int64_t dim_padded)
      : q(kBlock * dim),
        grad_o(kBlock * dim),
        dq(kBlock * dim_padded),
        lse(kBlock),
        delta(kBlock) {}
};

// Adds one block of keys to dQ of `rows` rows. Returns the sum of dS.
inline double query_step(const QuerySweep& tile, int64_t rows, const PackedBothWays& k,
                         const PackedBothWays& v, int64_t block, int64_t count, double bias,
                         float* logits, float* grad_p) {
  const int64_t panels = div_up(count, kPanel), dim = k.dim;
  gemm<false>(rows, panels, dim, tile.q, dim, k.transposed_block(block), dim * kPanel, logits,
              kBlock);
  gemm<false>(rows, panels, dim, tile.grad_o, dim, v.transposed_block(block), dim * kPanel, grad_p,
              kBlock);
  double total = 0.;
  for (int64_t i = 0; i < rows; i++) {
    total += score_grad_row(logits + i * kBlock, grad_p + i * kBlock, count,
                            Shift(bias - tile.lse[i] * kLog2e), tile.delta[i]);
  }
  gemm<true>(rows, k.dim_padded / kPanel, count, logits, kBlock, k.rows_block(block),
             kBlock * kPanel, tile.dq, k.dim_padded);
  return total;
}

inline void query_references(const BackwardHeads& at, int64_t b, int64_t first, int64_t rows,
                             int64_t ref_pair, const QuerySweep& tile, const QuerySweep& part,
                             int32_t* which, float* logits, float* grad_p, double* bias_sums) {
  const Attention& in = at.in;
  const int64_t dim = in.dim, dim_padded = at.k.dim_padded;
  int64_t i = 0;
  while (i < at.ref_blocks.size()) {
    const int64_t segment = at.ref_blocks[i].segment;
    const double bias = in.bias ? in.bias[segment] * kLog2e : 0.;
    const int64_t seen = rows_that_see(in, b, first, rows, segment, which);
    const QuerySweep& on = seen == rows ? tile : part;
    if (seen > 0 && seen < rows) {
      gather_rows(tile.q, dim, which, seen, part.q);
      gather_rows(tile.grad_o, dim, which, seen, part.grad_o);
      gather_rows(tile.dq, dim_padded, which, seen, part.dq);
      gather_rows(tile.lse, 1, which, seen, part.lse);
      gather_rows(tile.delta, 1, which, seen, part.delta);
      zero_padding(part.q, seen, dim);
      zero_padding(part.grad_o, seen, dim);
    }
    for (; i < at.ref_blocks.size() && at.ref_blocks[i].segment == segment; i++) {
      if (seen == 0) continue;
      bias_sums[segment] +=
          query_step(on, seen, at.k_ref, at.v_ref, ref_pair * at.ref_blocks.size() + i,
                     at.ref_blocks[i].count, bias, logits, grad_p);
    }
    if (seen > 0 && seen < rows) scatter_rows(part.dq, dim_padded, which, seen, tile.dq);
  }
}

// Writes a tile of gradients of q or k: times `factor`, rotated back.
inline void store_grad_tile(float* grad, int64_t stride, const Attention& in, int64_t b, int64_t h,
                            int64_t first, int64_t rows, const Rotation* rope, float factor,
                            const Rows& to) {
  for (int64_t i = 0; i < rows; i++) {
    float* x = grad + i * stride;
    for (int64_t d = 0; d < in.dim; d++) x[d] *= factor;
    if (rope) rotate(x, *rope, first + i, h, -1.f);
    store_row(x, in.dtype, in.dim, row_at(to, in.dtype, b, first + i, h));
  }
}

// dQ, and per tile the sums of dS over each segment: bias_sums [pairs, tiles, segments], zeroed.
inline void sweep_queries(const BackwardHeads& at, double* bias_sums, const Pool& pool) {
  const Attention& in = at.in;
  const int64_t dim_padded = at.k.dim_padded;
  parallel(pool, in.batch * at.heads * at.tiles, [&](Queue& queue) {
    const QuerySweep tile(in.dim, dim_padded), part(in.dim, dim_padded);
    Buffer<float> logits(kBlock * kBlock), grad_p(kBlock * kBlock);
    Buffer<int32_t> which(kBlock);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const int64_t t = item % at.tiles, pair = item / at.tiles;
      const int64_t b = pair / at.heads, h = at.first_head + pair % at.heads;
      const int64_t first = t * kBlock, rows = min_of(kBlock, in.rows - first);
      load_tile(in.q, in.dtype, in.dim, b, h, first, rows, nullptr, in.rope, at.q_factor(), tile.q);
      zero_padding(tile.q, rows, in.dim);
      std::memcpy(tile.grad_o, at.grad_o_rows + (pair * in.rows + first) * in.dim,
                  rows * in.dim * sizeof(float));
      zero_padding(tile.grad_o, rows, in.dim);
      std::memcpy(tile.lse, at.lse + pair * in.rows + first, rows * sizeof(float));
      std::memcpy(tile.delta, at.delta + pair * in.rows + first, rows * sizeof(float));
      std::memset(tile.dq, 0, kBlock * dim_padded * sizeof(float));
      for (int64_t i = 0; i < at.video_blocks.size(); i++) {
        query_step(tile, rows, at.k, at.v, pair * at.video_blocks.size() + i,
                   at.video_blocks[i].count, 0., logits, grad_p);
      }
      query_references(at, b, first, rows, at.ref_pair(pair), tile, part, which, logits, grad_p,
                       bias_sums + item * in.segments);
      store_grad_tile(tile.dq, dim_padded, in, b, h, first, rows, in.rope, in.scale, at.call.dq);
    }
  });
}

// What a block of queries brings to a sweep over keys: bias - lse in units of log2 e, and delta;
// padded so that the padding has probability 0.
struct RowStats {
  Buffer<float> high, low, delta;
  RowStats() : high(kBlock), low(kBlock), delta(kBlock) {}
  void load_block(const BackwardHeads& at, int64_t pair, int64_t first, int64_t count,
                  const int32_t* which, double bias) {
    for (int64_t j = 0; j < kBlock; j++) {
      const int64_t row = pair * at.in.rows + (j < count ? (which ? which[j] : first + j) : 0);
      const Shift shift(j < count ? bias - at.lse[row] * kLog2e : -__builtin_inf());
      high[j] = shift.high;
      low[j] = shift.low;
      delta[j] = j < count ? at.delta[row] : 0.f;
    }
  }
};

struct KeySweep {
  Buffer<float> k, v, dk, dv, logits, grad_p;
  int64_t dim, dim_padded;
  KeySweep(int64_t head_dim, int64_t padded)
      : k(kBlock * head_dim),
        v(kBlock * head_dim),
        dk(kBlock * padded),
        dv(kBlock * padded),
        logits(kBlock * kBlock),
        grad_p(kBlock * kBlock),
        dim(head_dim),
        dim_padded(padded) {}

  void start(const BackwardHeads& at, const Rows& keys, const Rows& values, const Rotation* rope,
             int64_t b, int64_t h, int64_t first, int64_t count) {
    const Attention& in = at.in;
    load_tile(keys, in.dtype, dim, b, h, first, count, nullptr, rope, 1.f, k);
    load_tile(values, in.dtype, dim, b, h, first, count, nullptr, nullptr, 1.f, v);
    zero_padding(k, count, dim);
    zero_padding(v, count, dim);
    std::memset(dk, 0, kBlock * dim_padded * sizeof(float));
    std::memset(dv, 0, kBlock * dim_padded * sizeof(float));
  }

  // Adds one block of `cols` queries to dK and dV of `count` keys.
  void step(int64_t count, const PackedBothWays& q, const PackedBothWays& grad_o, int64_t block,
            int64_t cols, const RowStats& rows) {
    const int64_t panels = div_up(cols, kPanel);
    gemm<false>(count, panels, dim, k, dim, q.transposed_block(block), dim * kPanel, logits,
                kBlock);
    gemm<false>(count, panels, dim, v, dim, grad_o.transposed_block(block), dim * kPanel, grad_p,
                kBlock);
    const int64_t padded = round_up(cols, kVector);
    for (int64_t i = 0; i < count; i++) {
      float *s = logits + i * kBlock, *dp = grad_p + i * kBlock;
      for (int64_t j = 0; j < padded; j += kVector) {
        const Vec p = exp2(load(s + j) + load(rows.high + j) + load(rows.low + j));
        store(dp + j, p * (load(dp + j) - load(rows.delta + j)));
        store(s + j, p);
      }
    }
    gemm<true>(count, dim_padded / kPanel, cols, logits, kBlock, grad_o.rows_block(block),
               kBlock * kPanel, dv, dim_padded);
    gemm<true>(count, dim_padded / kPanel, cols, grad_p, kBlock, q.rows_block(block),
               kBlock * kPanel, dk, dim_padded);
  }

  void finish(const BackwardHeads& at, const Rotation* rope, int64_t b, int64_t h, int64_t first,
              int64_t count, const Rows& to_k, const Rows& to_v) {
    // q carries scale * log2 e, of which dK keeps the scale.
    store_grad_tile(dk, dim_padded, at.in, b, h, first, count, rope, static_cast<float>(kLn2),
                    to_k);
    store_grad_tile(dv, dim_padded, at.in, b, h, first, count, nullptr, 1.f, to_v);
  }
};

inline void sweep_keys(const BackwardHeads& at, const Pool& pool) {
  const Attention& in = at.in;
  const KeyBlocks& blocks = at.video_blocks;
  parallel(pool, in.batch * at.heads * blocks.size(), [&](Queue& queue) {
    KeySweep tile(in.dim, at.k.dim_padded);
    RowStats stats;
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const KeyBlock& keys = blocks[item % blocks.size()];
      const int64_t pair = item / blocks.size();
      const int64_t b = pair / at.heads, h = at.first_head + pair % at.heads;
      tile.start(at, in.k, in.v, in.rope, b, h, keys.first, keys.count);
      for (int64_t t = 0; t < at.tiles; t++) {
        const int64_t first = t * kBlock, cols = min_of(kBlock, in.rows - first);
        stats.load_block(at, pair, first, cols, nullptr, 0.);
        tile.step(keys.count, at.q, at.grad_o, pair * at.tiles + t, cols, stats);
      }
      tile.finish(at, in.rope, b, h, keys.first, keys.count, at.call.dk, at.call.dv);
    }
  });
}

// Reference keys: over the rows that see their segment only, gathered; over the samples in order
// when they share one reference.
inline void sweep_reference_keys(const BackwardHeads& at, const Pool& pool) {
  const Attention& in = at.in;
  const KeyBlocks& blocks = at.ref_blocks;
  parallel(pool, in.ref_batch * at.heads * blocks.size(), [&](Queue& queue) {
    KeySweep tile(in.dim, at.k.dim_padded);
    RowStats stats;
    Buffer<int32_t> which(in.rows);
    Buffer<float> gathered(kBlock * in.dim);
    const PackedBothWays q(1, 1, in.dim), grad_o(1, 1, in.dim);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const KeyBlock& keys = blocks[item % blocks.size()];
      const int64_t ref_pair = item / blocks.size(), h = at.first_head + ref_pair % at.heads;
      const int64_t ref_b = ref_pair / at.heads, last_b = in.ref_batch == 1 ? in.batch : ref_b + 1;
      const double bias = in.bias ? in.bias[keys.segment] * kLog2e : 0.;
      tile.start(at, in.k_ref, in.v_ref, in.ref_rope, ref_b, h, keys.first, keys.count);
      for (int64_t b = ref_b; b < last_b; b++) {
        const int64_t pair = b * at.heads + ref_pair % at.heads;
        const int64_t seen = rows_that_see(in, b, 0, in.rows, keys.segment, which);
        for (int64_t first = 0; first < seen; first += kBlock) {
          const int64_t cols = min_of(kBlock, seen - first);
          load_tile(in.q, in.dtype, in.dim, b, h, 0, cols, which + first, in.rope, at.q_factor(),
                    gathered);
          q.pack(gathered, cols, 0);
          gather_rows(at.grad_o_rows + pair * in.rows * in.dim, in.dim, which + first, cols,
                      gathered);
          grad_o.pack(gathered, cols, 0);
          stats.load_block(at, pair, 0, cols, which + first, bias);
          tile.step(keys.count, q, grad_o, 0, cols, stats);
        }
      }
      tile.finish(at, in.ref_rope, ref_b, h, keys.first, keys.count, at.call.dk_ref,
                  at.call.dv_ref);
    }
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

  void add_bias(const double* sums, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
      for (int64_t r = 0; r < segments_; r++) bias_[r] += sums[i * segments_ + r];
    }
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

void attention_backward(const AttentionBackward& call, const Pool& pool) {
  const Attention& in = call.in;
  const KeyBlocks video_blocks(&in.keys, 1), ref_blocks(in.lengths, in.segments);
  std::unique_ptr<const PackedGate> gate;
  if (in.gate_mode != GateMode::kNone) gate.reset(new PackedGate(in.gate, in.dim));
  SharedGrads shared(in, gate.get());
  const int64_t group = heads_at_once(in, pool);
  BackwardHeads at(call, group, video_blocks, ref_blocks);
  const int64_t pairs = in.batch * group;
  Buffer<double> partials(pairs * at.chunks * shared.gate_size());
  Buffer<double> bias_sums(pairs * at.tiles * in.segments);

  for (int64_t h0 = 0; h0 < in.heads; h0 += group) {
    at.first_head = h0;
    at.heads = min_of(group, in.heads - h0);
    const int64_t chunks = in.batch * at.heads * at.chunks;
    const int64_t sums = in.batch * at.heads * at.tiles;
    std::memset(partials, 0, chunks * shared.gate_size() * sizeof(double));
    std::memset(bias_sums, 0, sums * in.segments * sizeof(double));
    pack_both_ways(at, in.k, in.rope, video_blocks, in.batch, pool, at.k);
    pack_both_ways(at, in.v, nullptr, video_blocks, in.batch, pool, at.v);
    pack_both_ways(at, in.k_ref, in.ref_rope, ref_blocks, in.ref_batch, pool, at.k_ref);
    pack_both_ways(at, in.v_ref, nullptr, ref_blocks, in.ref_batch, pool, at.v_ref);
    prepare_rows(at, gate.get(), partials, pool);
    sweep_queries(at, bias_sums, pool);
    sweep_keys(at, pool);
    sweep_reference_keys(at, pool);
    shared.add_bias(bias_sums, sums);
    shared.add_gate(partials, chunks);
  }
  shared.write(call);
}

}  // namespace
}  // namespace genhoi::cpu
