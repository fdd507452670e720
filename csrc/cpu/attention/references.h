// The forward pass's loop over references.
#pragma once

#include "cpu/attention/mainloop.h"
#include "cpu/attention/mask.h"

namespace genhoi::cpu {
namespace {

// The rows of a tile that see a segment, where some do not.
template <class Element>
struct RowSubset {
  QueryTile<Element> tile;
  Buffer<int32_t> which;
  RowSubset(int64_t dim, int64_t dim_padded) : tile(dim, dim_padded), which(kBlock) {}

  void gather(const QueryTile<Element>& from, int64_t count, const PackedKV<Element>& refs) {
    gather_rows(from.q.get(), refs.dim, which, count, tile.q.get());
    gather_rows(from.acc_o.get(), refs.dim_padded, which, count, tile.acc_o.get());
    gather_rows(from.row_max.get(), 1, which, count, tile.row_max.get());
    gather_rows(from.row_sum.get(), kVector, which, count, tile.row_sum.get());
  }

  void scatter(int64_t count, const PackedKV<Element>& refs, QueryTile<Element>& to) const {
    scatter_rows(tile.acc_o, refs.dim_padded, which, count, to.acc_o);
    scatter_rows(tile.row_max, 1, which, count, to.row_max);
    scatter_rows(tile.row_sum, kVector, which, count, to.row_sum);
  }
};

// Takes the blocks of each segment with those rows only that see it: the others are not touched,
// and what an unseen reference holds (NaN even) cannot reach them.
template <class Element>
void reference_loop(const Attention& in, const TileRows& rows, const PackedKV<Element>& refs,
                    int64_t ref_bh, QueryTile<Element>& tile, RowSubset<Element>& subset,
                    Mainloop<Element>& mainloop) {
  for (int64_t first = 0, end; first < refs.blocks.size(); first = end) {
    end = refs.blocks.end_of_segment(first);
    const int64_t segment = refs.blocks[first].segment;
    const int64_t seeing = rows_that_see(in, rows.b, rows.first, rows.count, segment, subset.which);
    if (seeing == 0) continue;
    const bool all_see = seeing == rows.count;
    if (!all_see) subset.gather(tile, seeing, refs);
    for (int64_t block = first; block < end; block++) {
      mainloop.take({
          .tile = all_see ? &tile : &subset.tile,
          .rows = seeing,
          .kv = &refs,
          .kv_bh = ref_bh,
          .block = block,
          .bias = in.bias ? static_cast<float>(in.bias[segment] * kLog2e) : 0.f,
      });
    }
    mainloop.finish();
    if (!all_see) subset.scatter(seeing, refs, tile);
  }
}

}  // namespace
}  // namespace genhoi::cpu
