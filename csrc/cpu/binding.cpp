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

std::optional<Rotation> rotation_of(const RotationTensors& tensors) {
  if (tensors.empty()) return std::nullopt;
  Rotation rope;
  for (int a = 0; a < 3; a++) {
    rope.axis[a] = floats(tensors[a]);
    rope.pairs[a] = tensors[a].size(1);
  }
  rope.index = static_cast<const int32_t*>(tensors[3].data_ptr());
  return rope;
}

// An argument as the field of Attention that has its name. Rotations are set by their owner.
struct ToField {
  void operator()(Rows& to, const Tensor& from) const { to = rows_of(from); }
  void operator()(Rows& to, const std::optional<Tensor>& from) const {
    if (from) to = rows_of(*from);
  }
  void operator()(const int32_t*& to, const std::optional<Tensor>& from) const {
    if (from) to = static_cast<const int32_t*>(from->data_ptr());
  }
  void operator()(Gate& to, const std::vector<Tensor>& from) const {
    if (from.empty()) return;
    to = {floats(from[0]), floats(from[1]), floats(from[2]),
          floats(from[3]), floats(from[4]), floats(from[5])};
  }
  void operator()(GateMode& to, int64_t from) const { to = static_cast<GateMode>(from); }
  void operator()(float& to, double from) const { to = static_cast<float>(from); }
  void operator()(const Rotation*&, const RotationTensors&) const {}
};

// What both passes are given; owns what Attention only points to. `from` has to outlive it.
struct AttentionInputs {
  Attention in{};
  std::optional<Rotation> rope, ref_rope;

  explicit AttentionInputs(const AttentionArguments& from)
      : rope(rotation_of(from.rope)), ref_rope(rotation_of(from.ref_rope)) {
    set_fields(in, from, ToField{});
    in.batch = from.q.size(0);
    in.rows = from.q.size(1);
    in.heads = from.q.size(2);
    in.dim = from.q.size(3);
    in.keys = from.k.size(1);
    in.dtype = dtype_of(from.q);
    in.refs = from.k_ref ? from.k_ref->size(1) : 0;
    in.ref_batch = from.k_ref ? from.k_ref->size(0) : 1;
    if (from.bits) in.bits_batch = from.bits->size(0) == 1 ? 0 : from.bits->stride(0);
    in.segments = static_cast<int64_t>(from.ref_lengths.size());
    in.lengths = from.ref_lengths.data();
    if (from.ref_bias) in.bias = floats(*from.ref_bias);
    in.rope = rope ? &*rope : nullptr;
    in.ref_rope = ref_rope ? &*ref_rope : nullptr;
  }
};

}  // namespace

std::vector<Tensor> attention_forward_op(const AttentionArguments& arguments, bool keep_ungated) {
  const Tensor& q = arguments.q;
  const AttentionInputs inputs(arguments);
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

std::vector<Tensor> attention_backward_op(const AttentionArguments& arguments,
                                          std::optional<Tensor> grad_out,
                                          std::optional<Tensor> grad_lse,
                                          std::optional<Tensor> grad_gate_sum, Tensor o, Tensor lse,
                                          int64_t wanted_bits) {
  const Tensor& q = arguments.q;
  const WantedGrads wanted(wanted_bits);
  const AttentionInputs inputs(arguments);
  AttentionBackward call{};
  call.in = inputs.in;
  call.o = rows_of(o);
  call.lse = floats(lse);
  if (grad_out) call.grad_out = rows_of(*grad_out);
  if (grad_lse) call.grad_lse = floats(*grad_lse);
  if (grad_gate_sum) call.grad_gate_sum = floats(*grad_gate_sum);
  // What nobody wants is left out where a sweep over keys gives nothing else. lse has them all.
  if (!wanted.of_video()) call.in.keys = 0;
  if (!wanted.of_references()) call.in.segments = call.in.refs = 0;

  // The kernels write to all of these, of which only the wanted ones are handed out.
  std::vector<Tensor> written, grads;
  const auto new_grad = [&](bool is_wanted, Tensor x) {
    written.push_back(x);
    if (is_wanted) grads.push_back(x);
    return x;
  };
  call.dq = rows_of(new_grad(wanted.q, new_rows(q)));
  call.dk = rows_of(new_grad(wanted.k, new_rows(arguments.k)));
  call.dv = rows_of(new_grad(wanted.v, new_rows(arguments.v)));
  if (arguments.k_ref) {
    call.dk_ref = rows_of(new_grad(wanted.k_ref, new_rows(*arguments.k_ref)));
    call.dv_ref = rows_of(new_grad(wanted.v_ref, new_rows(*arguments.v_ref)));
  }
  if (arguments.ref_bias && wanted.ref_bias) {
    const Tensor dbias = new_output(q, {call.in.segments}, ScalarType::Float);
    call.dbias = mutable_floats(new_grad(true, dbias));
  }
  if (!arguments.gate.empty()) {
    float* to[6];
    for (int i = 0; i < 6; i++) {
      to[i] = mutable_floats(new_grad(wanted.gate, torch::stable::empty_like(arguments.gate[i])));
    }
    call.dgate = {to[0], to[1], to[2], to[3], to[4], to[5]};
  }
  kernels().attention_backward(call, torch_pool());
  return grads;
}

namespace {

NormRope norm_rope_call(const Tensor& x, const Tensor& y, const std::optional<Tensor>& weight,
                        const RotationTensors& rope, double eps) {
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
  call.rope = *rotation_of(rope);
  return call;
}

}  // namespace

Tensor norm_rope_forward_op(Tensor x, std::optional<Tensor> weight, RotationTensors rope,
                            double eps, bool inverse) {
  Tensor y = new_rows(x);
  NormRope call = norm_rope_call(x, y, weight, rope, eps);
  call.inverse = inverse;
  kernels().norm_rope_forward(call, torch_pool());
  return y;
}

std::vector<Tensor> norm_rope_backward_op(Tensor grad, Tensor x, Tensor weight,
                                          RotationTensors rope, double eps) {
  Tensor dx = new_rows(x), dweight = torch::stable::empty_like(weight);
  const NormRopeBackward call{norm_rope_call(x, grad, weight, rope, eps), rows_of(dx),
                              mutable_floats(dweight)};
  kernels().norm_rope_backward(call, torch_pool());
  return {dx, dweight};
}

}  // namespace genhoi::cpu
