#include "binding.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "dispatch.h"

namespace genhoi::cpu {

Pool torch_pool() {
  return {torch::stable::get_num_threads(),
          [](int64_t items, void (*body)(int64_t, int64_t, void*), void* context) {
            torch::stable::parallel_for(
                0, items, 1, [&](int64_t begin, int64_t end) { body(begin, end, context); });
          }};
}

namespace {

using torch::headeronly::ScalarType;

DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, "the cpu backend takes float32, bfloat16 and float16");
  }
}

// [B, N, H, D]
Rows rows_of(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)}; }

const float* floats(const Tensor& x) { return static_cast<const float*>(x.data_ptr()); }
float* mutable_floats(const Tensor& x) { return static_cast<float*>(x.data_ptr()); }

Tensor new_output(const Tensor& x, std::initializer_list<int64_t> shape, ScalarType dtype) {
  Tensor output = torch::stable::new_empty(x, std::vector<int64_t>(shape), dtype);
  prefer_huge_pages(output.data_ptr(), output.numel() * output.element_size());
  return output;
}

// [B, N, H, D], contiguous whatever the strides of x.
Tensor new_rows(const Tensor& x) {
  return new_output(x, {x.size(0), x.size(1), x.size(2), x.size(3)}, x.scalar_type());
}

std::optional<Rotation> rotation_of(const RotationTensors& tensors, bool frame_is_head) {
  if (tensors.empty()) return std::nullopt;
  Rotation rope;
  for (int a = 0; a < 3; a++) {
    rope.axis[a] = floats(tensors[a]);
    rope.pairs[a] = tensors[a].size(1);
  }
  rope.index = static_cast<const int32_t*>(tensors[3].data_ptr());
  rope.frame_is_head = frame_is_head;
  return rope;
}

// What both passes are given; owns what Attention only points to.
struct AttentionInputs {
  Attention in{};
  std::vector<int64_t> lengths;
  std::optional<Rotation> rope, ref_rope;

  AttentionInputs(const Tensor& q, const Tensor& k, const Tensor& v,
                  const std::optional<Tensor>& k_ref, const std::optional<Tensor>& v_ref,
                  const std::optional<Tensor>& bits, const std::optional<Tensor>& bias,
                  const std::vector<Tensor>& gate, std::vector<int64_t> segment_lengths,
                  const RotationTensors& rope_tensors, const RotationTensors& ref_rope_tensors,
                  int64_t gate_mode, double scale)
      : lengths(std::move(segment_lengths)),
        rope(rotation_of(rope_tensors, false)),
        ref_rope(rotation_of(ref_rope_tensors, true)) {
    in.batch = q.size(0);
    in.rows = q.size(1);
    in.heads = q.size(2);
    in.dim = q.size(3);
    in.keys = k.size(1);
    in.dtype = dtype_of(q);
    in.q = rows_of(q);
    in.k = rows_of(k);
    in.v = rows_of(v);
    in.refs = k_ref ? k_ref->size(1) : 0;
    in.ref_batch = k_ref ? k_ref->size(0) : 1;
    if (k_ref) in.k_ref = rows_of(*k_ref);
    if (v_ref) in.v_ref = rows_of(*v_ref);
    if (bits) {
      in.bits = static_cast<const int32_t*>(bits->data_ptr());
      in.bits_batch = bits->size(0) == 1 ? 0 : bits->stride(0);
    }
    in.segments = static_cast<int64_t>(lengths.size());
    in.lengths = lengths.data();
    if (bias) in.bias = floats(*bias);
    in.rope = rope ? &*rope : nullptr;
    in.ref_rope = ref_rope ? &*ref_rope : nullptr;
    in.gate_mode = static_cast<GateMode>(gate_mode);
    if (!gate.empty()) {
      in.gate = {floats(gate[0]), floats(gate[1]), floats(gate[2]),
                 floats(gate[3]), floats(gate[4]), floats(gate[5])};
    }
    in.scale = static_cast<float>(scale);
  }
};

}  // namespace

std::vector<Tensor> attention_forward_op(Tensor q, Tensor k, Tensor v, std::optional<Tensor> k_ref,
                                         std::optional<Tensor> v_ref, std::optional<Tensor> bits,
                                         std::optional<Tensor> bias, std::vector<Tensor> gate,
                                         std::vector<int64_t> lengths, RotationTensors rope,
                                         RotationTensors ref_rope, int64_t gate_mode, double scale,
                                         bool keep_ungated) {
  const AttentionInputs inputs(q, k, v, k_ref, v_ref, bits, bias, gate, std::move(lengths), rope,
                               ref_rope, gate_mode, scale);
  const Attention& in = inputs.in;
  Tensor out = new_rows(q);
  Tensor lse = new_output(q, {in.batch, in.heads, in.rows}, ScalarType::Float);
  Tensor gate_sum = new_output(q, {in.batch, in.heads}, ScalarType::Float);
  if (in.gate_mode != GateMode::kSum) torch::stable::zero_(gate_sum);
  const bool keep = keep_ungated && in.gate_mode == GateMode::kToken;
  Tensor ungated = keep ? new_rows(q) : new_output(q, {0}, q.scalar_type());
  AttentionForward call{in, rows_of(out), {}, mutable_floats(lse), mutable_floats(gate_sum)};
  if (keep) call.ungated = rows_of(ungated);
  kernels().attention_forward(call, torch_pool());
  return {out, lse, gate_sum, ungated};
}

std::vector<Tensor> attention_backward_op(
    std::optional<Tensor> grad_out, std::optional<Tensor> grad_lse,
    std::optional<Tensor> grad_gate_sum, Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v,
    std::optional<Tensor> k_ref, std::optional<Tensor> v_ref, std::optional<Tensor> bits,
    std::optional<Tensor> bias, std::vector<Tensor> gate, std::vector<int64_t> lengths,
    RotationTensors rope, RotationTensors ref_rope, int64_t gate_mode, double scale) {
  const AttentionInputs inputs(q, k, v, k_ref, v_ref, bits, bias, gate, std::move(lengths), rope,
                               ref_rope, gate_mode, scale);
  AttentionBackward call{};
  call.in = inputs.in;
  call.o = rows_of(o);
  call.lse = floats(lse);
  if (grad_out) call.grad_out = rows_of(*grad_out);
  if (grad_lse) call.grad_lse = floats(*grad_lse);
  if (grad_gate_sum) call.grad_gate_sum = floats(*grad_gate_sum);

  std::vector<Tensor> grads = {new_rows(q), new_rows(k), new_rows(v)};
  call.dq = rows_of(grads[0]);
  call.dk = rows_of(grads[1]);
  call.dv = rows_of(grads[2]);
  if (k_ref) {
    grads.push_back(new_rows(*k_ref));
    call.dk_ref = rows_of(grads.back());
    grads.push_back(new_rows(*v_ref));
    call.dv_ref = rows_of(grads.back());
  }
  if (bias) {
    grads.push_back(new_output(q, {call.in.segments}, ScalarType::Float));
    call.dbias = mutable_floats(grads.back());
  }
  if (!gate.empty()) {
    float* to[6];
    for (int i = 0; i < 6; i++) {
      grads.push_back(torch::stable::empty_like(gate[i]));
      to[i] = mutable_floats(grads.back());
    }
    call.dgate = {to[0], to[1], to[2], to[3], to[4], to[5]};
  }
  kernels().attention_backward(call, torch_pool());
  return grads;
}

namespace {

NormRope norm_rope_call(const Tensor& x, const Tensor& y, const std::optional<Tensor>& weight,
                        const RotationTensors& rope, bool frame_is_head, double eps) {
  NormRope call{};
  call.batch = x.size(0);
  call.rows = x.size(1);
  call.heads = x.size(2);
  call.dim = x.size(3);
  call.dtype = dtype_of(x);
  call.x = rows_of(x);
  call.y = rows_of(y);
  if (weight) call.weight = floats(*weight);
  call.eps = static_cast<float>(eps);
  call.rope = *rotation_of(rope, frame_is_head);
  return call;
}

}  // namespace

Tensor norm_rope_forward_op(Tensor x, std::optional<Tensor> weight, RotationTensors rope,
                            bool frame_is_head, double eps, bool inverse) {
  Tensor y = new_rows(x);
  NormRope call = norm_rope_call(x, y, weight, rope, frame_is_head, eps);
  call.inverse = inverse;
  kernels().norm_rope_forward(call, torch_pool());
  return y;
}

std::vector<Tensor> norm_rope_backward_op(Tensor grad, Tensor x, Tensor weight,
                                          RotationTensors rope, bool frame_is_head, double eps) {
  Tensor dx = new_rows(x), dweight = torch::stable::empty_like(weight);
  const NormRopeBackward call{norm_rope_call(x, grad, weight, rope, frame_is_head, eps),
                              rows_of(dx), mutable_floats(dweight)};
  kernels().norm_rope_backward(call, torch_pool());
  return {dx, dweight};
}

}  // namespace genhoi::cpu
