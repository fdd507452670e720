// Backward pass, recomputed from the LSE (docs/op.md, "Backward"), in one sweep over blocks of keys
// against tiles of query rows. A block's dK and dV belong to one thread; dQ of a tile is added to
// by all blocks, in the order of the blocks, for which threads wait. Gradients of shared weights
// are summed over fixed partitions, in double, in a fixed order: the result does not depend on the
// number of threads.
#pragma once

#include <memory>

#include "cpu/attention/bwd_references.h"

namespace genhoi::cpu {
namespace {

// A head for each thread, but not more than half of them (or what keeps all threads busy), so that
// their memory stays within a few times that of q.
inline int64_t backward_heads_at_once(const Attention& in, const Pool& pool) {
  const int64_t of_threads = div_up(pool.threads, max_of(1, in.batch));
  return max_of(heads_at_once(in, pool), min_of(of_threads, div_up(in.heads, 2)));
}

template <class Element>
void attention_backward_in(const AttentionBackward& call, const Pool& pool) {
  const Attention& in = call.in;
  const KeyBlocks video_blocks(&in.keys, 1), ref_blocks(in.lengths, in.segments);
  std::unique_ptr<const PackedGate> gate;
  if (in.gate_mode != GateMode::kNone) gate.reset(new PackedGate(in.gate, in.dim));
  SharedGrads shared(in, gate.get());
  const int64_t group = backward_heads_at_once(in, pool);
  BackwardHeads work(call, group);
  const QueryRows<Element> rows(work.size(), in.rows, in.dim);
  Buffer<double> gate_partials(work.size() * work.chunks * shared.gate_size());
  Buffer<double> unused_sums(work.size() * video_blocks.size());
  const SweptKeys video_keys = {
      .k = in.k,
      .v = in.v,
      .dk = call.dk,
      .dv = call.dv,
      .rope = in.rope,
      .blocks = video_blocks,
      .first_block = 0,
      .last_block = video_blocks.size(),
      .batch = in.batch,
  };

  for (int64_t first = 0; first < in.heads; first += group) {
    work.heads = {.first = first, .count = min_of(group, in.heads - first)};
    const int64_t chunks = work.size() * work.chunks;
    std::memset(gate_partials, 0, chunks * shared.gate_size() * sizeof(double));
    bwd_preprocess(work, gate.get(), gate_partials, pool, rows);
    shared.add_gate(gate_partials, chunks);
    sweep_keys(work, video_keys, rows, unused_sums, pool);
    reference_backward(work, ref_blocks, pool, rows, shared);
    store_dq(call, work.heads, work.tiles, rows.dq, pool);
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
