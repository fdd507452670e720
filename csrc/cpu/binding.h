// The CPU operators as torch sees them; schemas in csrc/ops.cpp. Arguments were checked in Python.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels.h"

namespace genhoi::cpu {

using torch::stable::Tensor;

// torch's own threads.
Pool torch_pool();

// A rotation: [frame, row, col] tables and the tokens' rows in them, or nothing.
using RotationTensors = std::vector<Tensor>;

std::vector<Tensor> attention_forward_op(Tensor q, Tensor k, Tensor v, std::optional<Tensor> k_ref,
                                         std::optional<Tensor> v_ref, std::optional<Tensor> bits,
                                         std::optional<Tensor> bias, std::vector<Tensor> gate,
                                         std::vector<int64_t> lengths, RotationTensors rope,
                                         RotationTensors ref_rope, int64_t gate_mode, double scale,
                                         bool keep_ungated);

std::vector<Tensor> attention_backward_op(
    std::optional<Tensor> grad_out, std::optional<Tensor> grad_lse,
    std::optional<Tensor> grad_gate_sum, Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v,
    std::optional<Tensor> k_ref, std::optional<Tensor> v_ref, std::optional<Tensor> bits,
    std::optional<Tensor> bias, std::vector<Tensor> gate, std::vector<int64_t> lengths,
    RotationTensors rope, RotationTensors ref_rope, int64_t gate_mode, double scale);

Tensor norm_rope_forward_op(Tensor x, std::optional<Tensor> weight, RotationTensors rope,
                            bool frame_is_head, double eps, bool inverse);

std::vector<Tensor> norm_rope_backward_op(Tensor grad, Tensor x, Tensor weight,
                                          RotationTensors rope, bool frame_is_head, double eps);

}  // namespace genhoi::cpu
