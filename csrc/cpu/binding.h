// The CPU operators as torch sees them; schemas in csrc/ops.cpp. Arguments were checked in Python.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "attention_arguments.h"
#include "kernels.h"

namespace genhoi::cpu {

using torch::stable::Tensor;

// torch's own threads.
Pool torch_pool();

// A rotation: [frame, row, col] tables and the tokens' rows in them, or nothing.
using RotationTensors = std::vector<Tensor>;

// out, lse, gate_sum, ungated (empty unless kept).
std::vector<Tensor> attention_forward_op(const AttentionArguments& arguments, bool keep_ungated);

// The wanted ones of the gradients of q, k, v, k_ref, v_ref, ref_bias and the gate's six weights.
std::vector<Tensor> attention_backward_op(const AttentionArguments& arguments,
                                          std::optional<Tensor> grad_out,
                                          std::optional<Tensor> grad_lse,
                                          std::optional<Tensor> grad_gate_sum, Tensor o, Tensor lse,
                                          int64_t wanted);

Tensor norm_rope_forward_op(Tensor x, std::optional<Tensor> weight, RotationTensors rope,
                            double eps, bool inverse);

std::vector<Tensor> norm_rope_backward_op(Tensor grad, Tensor x, Tensor weight,
                                          RotationTensors rope, double eps);

}  // namespace genhoi::cpu
