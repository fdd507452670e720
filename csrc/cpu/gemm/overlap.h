// Work for the vector units while a unit of its own takes products (GemmTraits::kSeparateUnit).
#pragma once

#include "cpu/config.h"
#include "cpu/integers.h"

namespace genhoi::cpu {
namespace {

// What such a product calls after each of its steps, gemm_steps() times in all: slices of other
// work, slice(0), slice(1), ..., spread evenly over the steps of one product or more.
template <class Slice>
class Overlap {
 public:
  Overlap(int64_t slices, int64_t steps, const Slice& slice)
      : slices_(slices), steps_(steps), slice_(slice) {}
  void operator()() {
    for (due_ += slices_; due_ >= steps_; due_ -= steps_) slice_(done_++);
  }
  // What is left, if there were fewer steps.
  void finish() {
    while (done_ < slices_) slice_(done_++);
  }

 private:
  const int64_t slices_, steps_;
  int64_t due_ = 0, done_ = 0;
  const Slice& slice_;
};

struct NoOverlap {
  void operator()() const {}
};

}  // namespace
}  // namespace genhoi::cpu
