// Which instruction sets this build has, this CPU runs, and this process uses.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace genhoi::cpu {

struct Isa {
  const Kernels* kernels;
  bool usable;  // on this CPU
};

// Every instruction set of this build, fastest first. Asked of the CPU once: a virtual machine
// takes tens of microseconds to answer.
const std::vector<Isa>& isas();

// The fastest usable one, or the one named by the environment variable GENHOI_CPU_ISA. Throws
// std::runtime_error when that names none of this build or one this CPU lacks.
const Kernels& kernels();

struct Feature {
  std::string name;
  bool present;
};

// CPU features that matter to this project.
std::vector<Feature> cpu_features();

// Operations a second of the arithmetic units in use, on the pool's threads, a multiply-add being
// two; measured for about 0.1 s. The limit of every product of values of this dtype.
double peak_flops(DType dtype, const Pool& pool);

}  // namespace genhoi::cpu
