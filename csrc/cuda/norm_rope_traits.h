// Sizes of the norm and rotation kernels: plain constants, which host code reads as well.
#pragma once

namespace genhoi::cuda::norm_rope {

constexpr int kChunkValues = 8;
constexpr int kChunksPerThread = 4;
constexpr int kMaxThreads = 384;
constexpr int kMaxTokenValues = kMaxThreads * kChunksPerThread * kChunkValues;  // of all heads

constexpr int kMaxBackwardBlocks = 512;  // each with a partial sum of the weight's gradient

}  // namespace genhoi::cuda::norm_rope
