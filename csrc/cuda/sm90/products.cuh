// The two products that everything is made of, issued by a warpgroup and not awaited.
#pragma once

#include "swizzled_tile.cuh"
#include "wgmma.cuh"

namespace genhoi::cuda::sm90 {

// Issues scores = A B^T: the rows of two tiles, 64 of `a` and N of `b`, multiplied over their
// columns; and commits them. a, b: addresses of the first rows; a_slab, b_slab: bytes of the tiles'
// slabs.
template <class Element, int DIM, int N>
__device__ __forceinline__ void issue_scores(float (&scores)[N / 2], uint32_t a, uint32_t a_slab,
                                             uint32_t b, uint32_t b_slab) {
  using Tile = SwizzledTile<DIM>;
  const MatrixDescriptor<DIM> left(a), right(b);
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    const uint64_t rows = left.at(Tile::columns(step, a_slab));
    const uint64_t columns = right.at(Tile::columns(step, b_slab));
    if (step == 0) {
      Wgmma<Element, N>::template ss<true, false>(scores, rows, columns);
    } else {
      Wgmma<Element, N>::template ss<false, false>(scores, rows, columns);
    }
  }
  wgmma_commit();
}

// Issues sum += W B, or with ZERO sum = W B: 64 sums of the N rows of tile `b`, weighted by packed
// scores. To be committed.
template <bool ZERO, class Element, int DIM, int N>
__device__ __forceinline__ void issue_sums(float (&sum)[DIM / 2], const uint32_t (&weights)[N / 4],
                                           uint32_t b, uint32_t b_slab) {
  const MatrixDescriptor<DIM> tile(b, b_slab);
#pragma unroll
  for (int step = 0; step < N / 16; step++) {
    const uint64_t rows = tile.at(step * 16 * kSlabRowBytes<DIM>);
    if (ZERO && step == 0) {
      Wgmma<Element, DIM>::template rs<true, true>(sum, weights + 4 * step, rows);
    } else {
      Wgmma<Element, DIM>::template rs<false, true>(sum, weights + 4 * step, rows);
    }
  }
}

}  // namespace genhoi::cuda::sm90
