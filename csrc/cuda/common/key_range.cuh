// Ranges of keys with their values: those of the video, and those of each reference.
#pragma once

#include "../launch.h"
#include "mask_gate.cuh"
#include "ptx.cuh"

namespace genhoi::cuda {

constexpr uint32_t kAllRows = 15;

// Keys and values of one head, one after another in memory.
template <class Value>
struct KeyRange {
  const Value *k, *v;
  int64_t k_stride, v_stride;
  int count;
  float bias;          // added to the logits, in units of log2 e
  uint32_t seen_rows;  // bit 2 i + r: whether row r of fragment i sees them

  __device__ __forceinline__ void advance(int keys) {
    k += keys * k_stride;
    v += keys * v_stride;
  }
};

// First row of one sample's head.
template <class Value>
__device__ __forceinline__ const Value* head_of(const GenhoiTokens& x, int b, int h) {
  return static_cast<const Value*>(x.data) + b * x.batch + h * x.head;
}

// The scale and a reference's bias for logits in units of log2 e, whose exponential is exp2.
__device__ __forceinline__ float scale_to_log2(const GenhoiAttention& in) {
  return in.scale * kLog2e;
}
__device__ __forceinline__ float bias_to_log2(const GenhoiAttention& in, int segment) {
  return in.ref_bias == nullptr ? 0.0f : in.ref_bias[segment] * kLog2e;
}

// The video's keys from `first` on, which every row sees. k and v are those of the head's first
// key, as they are in reference_keys: whoever has found that the range has keys advances to
// `first`.
template <class Value>
__device__ __forceinline__ KeyRange<Value> video_keys(const GenhoiAttention& in, int b, int h,
                                                      int first) {
  KeyRange<Value> range;
  range.k = head_of<Value>(in.k, b, h);
  range.v = head_of<Value>(in.v, b, h);
  range.k_stride = in.k.token;
  range.v_stride = in.v.token;
  range.count = in.keys - first;
  range.bias = 0.0f;
  range.seen_rows = kAllRows;
  return range;
}

// The keys of reference `segment`, which begin at `first` among those of all references, for the
// rows from `start` on. bias: bias_to_log2 of the reference.
template <class Value>
__device__ __forceinline__ KeyRange<Value> reference_keys(const GenhoiAttention& in, int b, int h,
                                                          int start, int segment, int first,
                                                          float bias) {
  KeyRange<Value> range;
  range.k = head_of<Value>(in.k_ref, b, h);
  range.v = head_of<Value>(in.v_ref, b, h);
  range.k_stride = in.k_ref.token;
  range.v_stride = in.v_ref.token;
  range.count = in.segments[segment + 1] - first;
  range.bias = bias;
  range.seen_rows = rows_that_see(in, b, start, segment);
  return range;
}

}  // namespace genhoi::cuda
