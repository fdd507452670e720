// How rows are given to threads, and in which order a thread takes a row's parts.
#pragma once

#include "cpu/call.h"
#include "cpu/integers.h"

namespace genhoi::cpu {
namespace {

constexpr int64_t kMaxGroupRows = 128, kMinGroupRows = 8;  // that a thread takes

// Rows [first, first + count) of sample b.
struct RowGroup {
  int64_t b, first, count;
};

// The same groups whatever the number of threads: the weight's gradient is summed by them.
class RowGroups {
 public:
  explicit RowGroups(const NormRope& call)
      : rows_(call.rows),
        group_rows_(rows_of_group(call.batch * call.rows)),
        per_sample_(div_up(call.rows, group_rows_)),
        size_(call.batch * per_sample_) {}
  int64_t size() const { return size_; }
  RowGroup operator[](int64_t i) const {
    const int64_t first = i % per_sample_ * group_rows_;
    return {.b = i / per_sample_, .first = first, .count = min_of(group_rows_, rows_ - first)};
  }

 private:
  // Few rows are shared by the threads, too.
  static int64_t rows_of_group(int64_t rows) {
    return max_of(kMinGroupRows, min_of(kMaxGroupRows, div_up(rows, 16)));
  }
  int64_t rows_, group_rows_, per_sample_, size_;
};

// A row's sums, sum(b, row, slot), are taken before the row before it is written, and made into
// factors, finish(slot), behind that: neither the sums nor the root and the division are waited
// for.
template <class Worker>
inline void for_rows(const RowGroup& group, Worker& worker) {
  const int64_t end = group.first + group.count;
  worker.sum(group.b, group.first, group.first % 2);
  worker.finish(group.first % 2);
  for (int64_t row = group.first; row < end; row++) {
    const int64_t next = row + 1;
    if (next < end) worker.sum(group.b, next, next % 2);
    worker.write(group.b, row, row % 2);
    if (next < end) worker.finish(next % 2);
  }
}

}  // namespace
}  // namespace genhoi::cpu
