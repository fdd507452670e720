// The CUDA kernels' operators as torch calls them, and the library that holds the kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "attention_arguments.h"

namespace genhoi::cuda {

using torch::stable::Tensor;

// Opens the library of launch.h. It needs CUDA's runtime library, which a CUDA build of torch has
// loaded already. Throws std::runtime_error with the loader's words; a second call does nothing.
void open_library(const std::string& path);

// out, lse, gate_sums of each tile of rows, ungated (empty unless kept). q, k and k_ref come
// rotated, and the scale positive. What is wrong with an argument is found before, in Python.
std::vector<Tensor> attention_forward_op(const AttentionArguments& arguments, bool keep_ungated);

// dO . O - dL, [B, H, N], of what was not gated.
Tensor attention_delta_op(Tensor grad_out, Tensor out, std::optional<Tensor> grad_lse);

// Through the flow gate: dO, the same delta, and du_x, dfc1_bias, dfc2_weight and dfc2_bias of
// GenhoiFlowGateBackward. out: before the gate.
std::vector<Tensor> gate_backward_op(Tensor grad_out, Tensor out, std::optional<Tensor> grad_lse,
                                     std::optional<Tensor> grad_gate_sum, std::vector<Tensor> gate,
                                     int64_t gate_mode);

// The wanted ones of the gradients of q, k, v, k_ref, v_ref and ref_bias. A kernel is launched if
// any of its results is wanted.
std::vector<Tensor> attention_backward_op(const AttentionArguments& arguments, Tensor grad,
                                          Tensor lse, Tensor delta, int64_t wanted);

// x [B, N, H, D]; cosines, sines and places as in GenhoiAngles.
Tensor norm_rope_forward_op(Tensor x, std::optional<Tensor> weight, Tensor cosines, Tensor sines,
                            Tensor places, int64_t row_table, int64_t col_table, double eps,
                            bool inverse);

// Gradients of x and weight.
std::vector<Tensor> norm_rope_backward_op(Tensor grad, Tensor x, Tensor weight, Tensor cosines,
                                          Tensor sines, Tensor places, int64_t row_table,
                                          int64_t col_table, double eps);

}  // namespace genhoi::cuda
