// The backward pass's sweep: all blocks of keys of one source against all tiles of query rows, on
// all threads.
#pragma once

#include "cpu/attention/bwd_dkdv.h"
#include "cpu/attention/bwd_preprocess.h"

namespace genhoi::cpu {
namespace {

// Some blocks of the keys of one source, and where their gradients go.
struct SweptKeys {
  const Rows &k, &v, &dk, &dv;
  const Rotation* rope;
  const KeyBlocks& blocks;
  int64_t first_block, last_block;
  int64_t batch;  // 1: shared by all samples
};

// Adds to dQ, stores dK and dV, and returns in ds_sums [keys.batch * heads, blocks] the sum of dS
// of each block.
template <class Element>
void sweep_keys(const BackwardHeads& work, const SweptKeys& keys, const QueryRows<Element>& rows,
                double* ds_sums, const Pool& pool) {
  const HeadGroup& heads = work.heads;
  const int64_t blocks = keys.last_block - keys.first_block, size = keys.batch * heads.count;
  const int64_t samples = work.in.batch / max_of(1, keys.batch);
  Buffer<Queue> remaining(size);  // blocks of each sample and head of the keys
  for (int64_t i = 0; i < size; i++) remaining[i] = {blocks};
  parallel(pool, size * blocks, [&](Queue& queue) {
    [[maybe_unused]] const typename GemmTraits<Element>::Unit unit;
    KeyBlockSweep<Element> sweep(work.in);
    const auto sweep_block = [&](int64_t key_bh, int64_t turn) {
      const KeyBlock& block = keys.blocks[keys.first_block + turn];
      const int64_t key_b = heads.sample(key_bh);
      sweep.start({.b = key_b, .h = heads.head(key_bh), .first = block.first, .count = block.count},
                  keys.k, keys.v, keys.rope);
      for (int64_t b = key_b * samples; b < (key_b + 1) * samples; b++) {
        const int64_t bh = b * heads.count + key_bh % heads.count;
        for (int64_t t = 0; t * kBlock < rows.count[bh]; t++) {
          sweep.take({.rows = &rows,
                      .at = bh * rows.tiles + t,
                      .columns = rows.rows_of(bh, t),
                      .turn = static_cast<int32_t>(turn)});
        }
      }
      ds_sums[key_bh * blocks + turn] = sweep.finish(keys.rope, keys.dk, keys.dv);
    };
    const auto sweep_head = [&](int64_t key_bh) {
      for (int64_t turn; (turn = remaining[key_bh].next()) < blocks;) sweep_block(key_bh, turn);
    };
    // A head to each thread, so that its dQ stays in that thread's caches; then what others have
    // left.
    int64_t ticket;
    while ((ticket = queue.next()) < size) sweep_head(ticket);
    for (int64_t i = 0; i < size; i++) sweep_head((ticket + i) % size);
  });
}

}  // namespace
}  // namespace genhoi::cpu
