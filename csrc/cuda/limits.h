// What the CUDA kernels need of a GPU and of a call: known without a GPU and without their library.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace genhoi::cuda {

// Dynamic shared memory of a block in bytes, by kernel and head dim.
std::map<std::string, std::map<int, uint32_t>> shared_bytes();

// Values of a token, heads times head dim, that the norm and rotation kernels take at most.
int max_norm_rope_values();

}  // namespace genhoi::cuda
