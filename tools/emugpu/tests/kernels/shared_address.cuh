// What inline assembly needs of a pointer into shared memory.
#pragma once
#include <stdint.h>

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return (uint32_t)__cvta_generic_to_shared(pointer);
}
