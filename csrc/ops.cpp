// Schemas of the native operators, once. Shapes for tracing, gradients and autocast live in
// genhoi_kernels/ops.py, one level up; these are called from genhoi_kernels/backends only.
#include <torch/csrc/stable/library.h>

#include "attention_arguments.h"
#include "cpu/binding.h"
#include "cuda/binding.h"

STABLE_TORCH_LIBRARY_FRAGMENT(genhoi_kernels, m) {
  m.def("cpu_attention_forward(" GENHOI_ATTENTION_SCHEMA "bool keep_ungated) -> Tensor[]");
  m.def("cpu_attention_backward(" GENHOI_ATTENTION_SCHEMA
        "Tensor? grad_out, Tensor? grad_lse, Tensor? grad_gate_sum, Tensor o, Tensor lse, "
        "int wanted) -> Tensor[]");
  m.def(
      "cpu_norm_rope_forward(Tensor x, Tensor? weight, Tensor[] rope, float eps, bool inverse)"
      " -> Tensor");
  m.def(
      "cpu_norm_rope_backward(Tensor grad, Tensor x, Tensor weight, Tensor[] rope, float eps)"
      " -> Tensor[]");
  m.def("cuda_attention_forward(" GENHOI_ATTENTION_SCHEMA "bool keep_ungated) -> Tensor[]");
  m.def("cuda_attention_delta(Tensor grad_out, Tensor out, Tensor? grad_lse) -> Tensor");
  m.def(
      "cuda_gate_backward(Tensor grad_out, Tensor out, Tensor? grad_lse, Tensor? grad_gate_sum, "
      "Tensor[] gate, int gate_mode) -> Tensor[]");
  m.def("cuda_attention_backward(" GENHOI_ATTENTION_SCHEMA
        "Tensor grad, Tensor lse, Tensor delta, int wanted) -> Tensor[]");
  m.def(
      "cuda_norm_rope_forward(Tensor x, Tensor? weight, Tensor cosines, Tensor sines, "
      "Tensor places, int row_table, int col_table, float eps, bool inverse) -> Tensor");
  m.def(
      "cuda_norm_rope_backward(Tensor grad, Tensor x, Tensor weight, Tensor cosines, "
      "Tensor sines, Tensor places, int row_table, int col_table, float eps) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(genhoi_kernels, CPU, m) {
  m.impl("cpu_attention_forward", GENHOI_BOX_ATTENTION(genhoi::cpu::attention_forward_op));
  m.impl("cpu_attention_backward", GENHOI_BOX_ATTENTION(genhoi::cpu::attention_backward_op));
  m.impl("cpu_norm_rope_forward", TORCH_BOX(&genhoi::cpu::norm_rope_forward_op));
  m.impl("cpu_norm_rope_backward", TORCH_BOX(&genhoi::cpu::norm_rope_backward_op));
}

STABLE_TORCH_LIBRARY_IMPL(genhoi_kernels, CUDA, m) {
  m.impl("cuda_attention_forward", GENHOI_BOX_ATTENTION(genhoi::cuda::attention_forward_op));
  m.impl("cuda_attention_delta", TORCH_BOX(&genhoi::cuda::attention_delta_op));
  m.impl("cuda_gate_backward", TORCH_BOX(&genhoi::cuda::gate_backward_op));
  m.impl("cuda_attention_backward", GENHOI_BOX_ATTENTION(genhoi::cuda::attention_backward_op));
  m.impl("cuda_norm_rope_forward", TORCH_BOX(&genhoi::cuda::norm_rope_forward_op));
  m.impl("cuda_norm_rope_backward", TORCH_BOX(&genhoi::cuda::norm_rope_backward_op));
}
