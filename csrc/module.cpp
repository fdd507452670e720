// What is not a tensor: how this build was made and what this CPU is. Importing the module also
// registers the operators of ops.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/binding.h"
#include "cpu/dispatch.h"
#include "cuda/binding.h"
#include "cuda/limits.h"

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

std::vector<std::string> isa_names(bool usable_only) {
  std::vector<std::string> names;
  for (const auto& isa : genhoi::cpu::isas()) {
    if (isa.usable || !usable_only) names.emplace_back(isa.kernels->name);
  }
  return names;
}

std::map<std::string, bool> cpu_features() {
  std::map<std::string, bool> features;
  for (const auto& feature : genhoi::cpu::cpu_features()) {
    features[feature.name] = feature.present;
  }
  return features;
}

double peak_flops(const std::string& dtype) {
  using genhoi::cpu::DType;
  const std::map<std::string, DType> known = {
      {"float32", DType::kFloat32}, {"bfloat16", DType::kBFloat16}, {"float16", DType::kFloat16}};
  const auto found = known.find(dtype);
  if (found == known.end()) {
    throw std::invalid_argument("dtype: got " + dtype + ", wanted float32, bfloat16 or float16");
  }
  return genhoi::cpu::peak_flops(found->second, genhoi::cpu::torch_pool());
}

// A kernel's sizes by head dim.
using KernelLimits = std::map<int, std::map<std::string, uint32_t>>;

pybind11::dict cuda_limits() {
  std::map<std::string, std::map<std::string, KernelLimits>> kernels;
  std::map<int, uint32_t> bwd_shared_bytes;
  for (const auto& size : genhoi::cuda::kernel_sizes()) {
    kernels[size.generation][size.kernel][size.head_dim] = {{"queries", size.queries},
                                                            {"keys", size.keys},
                                                            {"threads", size.threads},
                                                            {"loop_threads", size.loop_threads},
                                                            {"shared_bytes", size.shared_bytes}};
    const bool is_sm80 = size.generation == std::string("sm80");
    if (!is_sm80 || size.kernel == std::string("attention_fwd")) continue;
    auto& most = bwd_shared_bytes[size.head_dim];
    most = std::max(most, size.shared_bytes);
  }
  pybind11::dict limits;
  limits["kernels"] = kernels;
  limits["bwd_shared_bytes"] = bwd_shared_bytes;
  limits["norm_rope_values"] = genhoi::cuda::max_norm_rope_values();
  return limits;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of genhoi_kernels: build and CPU information.";
  m.attr("compiler") = compiler();
  m.def("compiled_isas", [] { return isa_names(false); }, "Instruction sets of this build.");
  m.def("usable_isas", [] { return isa_names(true); }, "Those that this CPU runs.");
  m.def(
      "isa", [] { return std::string(genhoi::cpu::kernels().name); },
      "The one in use; GENHOI_CPU_ISA names another. RuntimeError if that one is not usable.");
  m.def("peak_flops", &peak_flops,
        "Operations a second of the arithmetic units on torch's threads, measured now.");
  m.def("open_cuda_library", &genhoi::cuda::open_library,
        "Opens the CUDA kernels' library at a path; RuntimeError with the loader's words.");
  m.def(
      "cuda_limits", &cuda_limits,
      "What the CUDA kernels need, without a GPU: kernels, their tile and block by generation, "
      "kernel and head dim; bwd_shared_bytes, the most of the sm_80 backward kernels, by head dim; "
      "and norm_rope_values, the most values of a token.");
  m.def("cpu_features", &cpu_features, "CPU features that matter here.");
}
