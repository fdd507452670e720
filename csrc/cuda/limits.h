// What the CUDA kernels need of a GPU and of a call: known without a GPU and without their library.
#pragma once

#include <cstdint>
#include <vector>

namespace genhoi::cuda {

// A kernel's tile and block, as its traits have them.
struct KernelSize {
  const char* generation;  // its folder below csrc/cuda
  const char* kernel;      // behind a comma, a form of it: "bwd_dkdv, references"
  int head_dim;            // the largest that it takes
  int queries;             // of a tile
  int keys;                // of a tile; 0 for a kernel that sees none
  int threads;             // of a block
  int loop_threads;        // those of them that compute, in the main loop
  uint32_t shared_bytes;   // dynamic shared memory of a block
};

// The kernels that multiply matrices.
std::vector<KernelSize> kernel_sizes();

// Values of a token, heads times head dim, that the norm and rotation kernels take at most.
int max_norm_rope_values();

}  // namespace genhoi::cuda
