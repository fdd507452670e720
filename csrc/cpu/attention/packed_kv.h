// Keys and values of a group of heads as operands B, packed once for all query tiles.
#pragma once

#include "cpu/attention/head_group.h"
#include "cpu/attention/key_blocks.h"
#include "cpu/attention/tiles.h"
#include "cpu/gemm/pack.h"

namespace genhoi::cpu {
namespace {

// By blocks: keys as panels of K^T, values as panels of V.
template <class Element>
struct PackedKV {
  KeyBlocks blocks;
  int64_t dim, dim_padded;
  Buffer<Element> keys, values;
  // `lengths` of the source's segments; `size`: samples times heads.
  PackedKV(const int64_t* lengths, int64_t segments, int64_t size, int64_t head_dim)
      : blocks(lengths, segments),
        dim(head_dim),
        dim_padded(round_up(head_dim, kPanel)),
        keys(size * blocks.size() * kBlock * dim),
        values(size * blocks.size() * kBlock * dim_padded) {}
  Element* key_block(int64_t bh, int64_t block) const {
    return keys + (bh * blocks.size() + block) * kBlock * dim;
  }
  Element* value_block(int64_t bh, int64_t block) const {
    return values + (bh * blocks.size() + block) * kBlock * dim_padded;
  }
};

// Where keys and values come from: the video's or the references'.
struct KVSource {
  const Rows &k, &v;
  const Rotation* rope;
  int64_t batch;  // 1: shared by all samples
};

// seen [batch]: bits of the segments that any row will read.
template <class Element>
void pack_kv(const Attention& in, const KVSource& source, const HeadGroup& heads,
             const uint32_t* seen, const Pool& pool, const PackedKV<Element>& to) {
  const int64_t blocks = to.blocks.size();
  parallel(pool, source.batch * heads.count * blocks, [&](Queue& queue) {
    Buffer<float> tile(kBlock * in.dim);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      const int64_t block = item % blocks, bh = item / blocks, b = heads.sample(bh);
      const KeyBlock& keys = to.blocks[block];
      if (!(seen[b] >> keys.segment & 1)) continue;
      const TileRows rows = {.b = b, .h = heads.head(bh), .first = keys.first, .count = keys.count};
      const Matrix loaded = {.data = tile, .rows = keys.count, .columns = in.dim, .stride = in.dim};
      load_tile(in, source.k, rows, source.rope, tile);
      pack_b_transposed(loaded, to.key_block(bh, block));
      load_tile(in, source.v, rows, nullptr, tile);
      pack_b(loaded, kBlock, to.value_block(bh, block));
    }
  });
}

}  // namespace
}  // namespace genhoi::cpu
