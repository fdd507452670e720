// What the kernels ask of the process they run in: memory and threads. Included by the baseline's
// sources and by those of every instruction set: all functions are in an anonymous namespace, for
// the reason that config.h gives.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/integers.h"

namespace genhoi::cpu {

// A pool of threads: runs body(begin, end, context) over a partition of [0, items) on up to
// `threads` of them.
struct Pool {
  int64_t threads;
  void (*run)(int64_t items, void (*body)(int64_t begin, int64_t end, void* context),
              void* context);
};

namespace {

constexpr int64_t kHugePage = int64_t{1} << 21;

// Asks for huge pages in memory about to be written for the first time: 4 KB pages are handed out
// one by one, which for a large output can take longer than computing it.
inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (address + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// An array that is owned, aligned to cache lines, and not initialised.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size) {
    // A large one begins and ends with a huge page, so that none of it is handed out 4 KB at a
    // time.
    const int64_t wanted = max_of(size, 1) * static_cast<int64_t>(sizeof(T));
    const int64_t alignment = wanted < kHugePage / 2 ? 64 : kHugePage;
    const int64_t bytes = round_up(wanted, alignment);
    void* data = nullptr;
    if (posix_memalign(&data, alignment, bytes) != 0) throw std::bad_alloc();
    prefer_huge_pages(data, bytes);
    data_ = static_cast<T*>(data);
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }
  operator T*() const { return data_; }

 private:
  T* data_;
};

// Hands out items one by one, so that uneven items share the threads evenly.
struct Queue {
  int64_t items;
  int64_t taken = 0;
  int64_t next() { return __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED); }
};

// worker(queue) runs once on each thread: it makes its scratch, then loops
// `for (int64_t item; (item = queue.next()) < queue.items;)`.
template <class Worker>
void parallel(const Pool& pool, int64_t items, const Worker& worker) {
  struct Context {
    Queue queue;
    const Worker* worker;
  } context{{items}, &worker};
  if (items == 0) return;
  pool.run(
      min_of(pool.threads, items),
      [](int64_t begin, int64_t end, void* p) {
        if (begin < end) (*static_cast<Context*>(p)->worker)(static_cast<Context*>(p)->queue);
      },
      &context);
}

}  // namespace
}  // namespace genhoi::cpu
