// Functions of torch that its stable interface does not have.
#pragma once

namespace genhoi::cuda {

// A function of the torch that this process has loaded, whatever its libraries are called. Throws
// std::runtime_error, with the libraries it looked in, if none of them has it.
void* torch_function(const char* name);

}  // namespace genhoi::cuda
