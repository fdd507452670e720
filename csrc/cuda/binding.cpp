// The CUDA operators: torch's tensors become the structs of launch.h.
#include "binding.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <stdexcept>

#include "launch.h"
#include "loaded_torch.h"

namespace genhoi::cuda {

namespace {

using torch::headeronly::ScalarType;

void* library = nullptr;

// A function of launch.h.
template <class Function>
Function* function(const char* name) {
  STD_TORCH_CHECK(library != nullptr, "the library of CUDA kernels is not open");
  auto* symbol = reinterpret_cast<Function*>(dlsym(library, name));
  STD_TORCH_CHECK(symbol != nullptr, "the library of CUDA kernels has no ", name);
  return symbol;
}

void check(int error, const char* name) {
  if (error == 0) return;
  const auto* message = function<const char*(int)>("genhoi_error_string")(error);
  STD_TORCH_CHECK(false, name, ": CUDA error ", error, ", ", message);
}

// The stable interface gives a stream's handle from torch 2.13 on. This older function is in
// torch's CUDA library, with which a build that serves CPUs too can't be linked.
using StreamOf = decltype(aoti_torch_get_current_cuda_stream);
StreamOf* stream_of = nullptr;

void* current_stream(const Tensor& x) {
  STD_TORCH_CHECK(stream_of != nullptr, "the library of CUDA kernels is not open");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(stream_of(x.get_device_index(), &stream));
  return stream;
}

GenhoiTokens tokens_of(const Tensor& x) {
  return {x.data_ptr(), x.size(0) == 1 ? 0 : x.stride(0), x.stride(1), x.stride(2)};
}

template <class Value>
Value* data(const std::optional<Tensor>& x) {
  return x ? static_cast<Value*>(x->data_ptr()) : nullptr;
}

// Rows of a tensor [batch or 1, n], contiguous.
int64_t batch_stride(const std::optional<Tensor>& x) {
  return !x || x->size(0) == 1 ? 0 : x->size(1);
}

// An argument as the field of GenhoiAttention that has its name.
struct ToField {
  void operator()(GenhoiTokens& to, const Tensor& from) const { to = tokens_of(from); }
  void operator()(GenhoiTokens& to, const std::optional<Tensor>& from) const {
    if (from) to = tokens_of(*from);
  }
  template <class Value>
  void operator()(const Value*& to, const std::optional<Tensor>& from) const {
    to = data<const Value>(from);
  }
  void operator()(GenhoiGate& to, const std::vector<Tensor>& from) const {
    if (from.empty()) return;
    const auto floats = [&](int i) { return static_cast<const float*>(from[i].data_ptr()); };
    to = {floats(0), floats(1), from[2].data_ptr(), floats(3), floats(4), floats(5)};
  }
  void operator()(int32_t& to, int64_t from) const { to = static_cast<int32_t>(from); }
  void operator()(float& to, double from) const { to = static_cast<float>(from); }
};

GenhoiAttention attention_of(const AttentionArguments& from) {
  GenhoiAttention in{};
  set_fields(in, from, ToField{});
  const Tensor& q = from.q;
  in.dtype = q.scalar_type() == ScalarType::Half ? GENHOI_FLOAT16 : GENHOI_BFLOAT16;
  in.batch = static_cast<int32_t>(q.size(0));
  in.rows = static_cast<int32_t>(q.size(1));
  in.heads = static_cast<int32_t>(q.size(2));
  in.head_dim = static_cast<int32_t>(q.size(3));
  in.keys = static_cast<int32_t>(from.k.size(1));
  in.ref_tokens = from.k_ref ? static_cast<int32_t>(from.k_ref->size(1)) : 0;
  in.references = from.ref_starts ? static_cast<int32_t>(from.ref_starts->size(0)) - 1 : 0;
  in.segments = data<const int32_t>(from.ref_starts);
  in.bits_batch = batch_stride(from.bits);
  in.tile_bits_batch = batch_stride(from.tile_bits);
  return in;
}

// What is read of the attention where only its result is needed.
GenhoiAttention attention_of_result(const Tensor& out, const std::vector<Tensor>& gate,
                                    int64_t gate_mode) {
  AttentionArguments from{};
  from.q = from.k = from.v = out;
  from.gate = gate;
  from.gate_mode = gate_mode;
  from.scale = 1.0;
  return attention_of(from);
}

Tensor empty(const Tensor& x, std::vector<int64_t> shape, ScalarType dtype) {
  return torch::stable::new_empty(x, shape, dtype);
}

float* floats(const Tensor& x) { return static_cast<float*>(x.data_ptr()); }

Tensor empty_as(const Tensor& x) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < x.dim(); i++) shape.push_back(x.size(i));
  return empty(x, shape, x.scalar_type());
}

GenhoiNormRope norm_rope_of(const Tensor& x, const std::optional<Tensor>& weight,
                            const Tensor& cosines, const Tensor& sines, const Tensor& places,
                            int64_t row_table, int64_t col_table, double eps) {
  GenhoiNormRope call{};
  call.dtype = x.scalar_type() == ScalarType::Float  ? GENHOI_FLOAT32
               : x.scalar_type() == ScalarType::Half ? GENHOI_FLOAT16
                                                     : GENHOI_BFLOAT16;
  call.batch = static_cast<int32_t>(x.size(0));
  call.tokens = static_cast<int32_t>(x.size(1));
  call.heads = static_cast<int32_t>(x.size(2));
  call.head_dim = static_cast<int32_t>(x.size(3));
  call.eps = static_cast<float>(eps);
  call.x = tokens_of(x);
  call.weight = data<const float>(weight);
  call.angles = {floats(cosines), floats(sines), static_cast<const int32_t*>(places.data_ptr()),
                 static_cast<int32_t>(row_table), static_cast<int32_t>(col_table)};
  return call;
}

}  // namespace

void open_library(const std::string& path) {
  if (library != nullptr) return;
  stream_of = reinterpret_cast<StreamOf*>(torch_function("aoti_torch_get_current_cuda_stream"));
  library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(dlerror());
}

std::vector<Tensor> attention_forward_op(const AttentionArguments& arguments, bool keep_ungated) {
  const Tensor& q = arguments.q;
  const int64_t gate_mode = arguments.gate_mode;
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  GenhoiForward call{};
  call.in = attention_of(arguments);
  const int64_t batch = q.size(0), rows = q.size(1), heads = q.size(2), dim = q.size(3);
  const bool sum = gate_mode == GENHOI_GATE_SUM;
  GenhoiPlan plan{};
  const auto planner =
      function<decltype(genhoi_attention_forward_plan)>("genhoi_attention_forward_plan");
  check(planner(&call, &plan), "attention_forward");
  const int64_t tiles = sum ? plan.grid[0] : 0;
  Tensor out = empty(q, {batch, rows, heads, dim}, q.scalar_type());
  Tensor lse = empty(q, {batch, heads, rows}, ScalarType::Float);
  Tensor gate_sums = empty(q, {batch, heads, tiles}, ScalarType::Float);
  const bool keep = keep_ungated && gate_mode == GENHOI_GATE_TOKEN;
  Tensor ungated =
      keep ? empty(q, {batch, rows, heads, dim}, q.scalar_type()) : empty(q, {0}, q.scalar_type());
  call.out = out.data_ptr();
  call.ungated = keep ? ungated.data_ptr() : nullptr;
  call.lse = floats(lse);
  call.gate_sums = sum ? floats(gate_sums) : nullptr;
  const auto launch = function<decltype(genhoi_attention_forward)>("genhoi_attention_forward");
  check(launch(&call, current_stream(q)), "attention_forward");
  return {out, lse, gate_sums, ungated};
}

Tensor attention_delta_op(Tensor grad_out, Tensor out, std::optional<Tensor> grad_lse) {
  const torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  GenhoiBackward call{};
  call.in = attention_of_result(out, {}, GENHOI_GATE_NONE);
  call.out = tokens_of(out);
  call.dout = tokens_of(grad_out);
  call.dlse = data<const float>(grad_lse);
  Tensor delta = empty(out, {out.size(0), out.size(2), out.size(1)}, ScalarType::Float);
  call.delta = floats(delta);
  const auto launch = function<decltype(genhoi_attention_backward_preprocess)>(
      "genhoi_attention_backward_preprocess");
  check(launch(&call, current_stream(out)), "attention_delta");
  return delta;
}

std::vector<Tensor> gate_backward_op(Tensor grad_out, Tensor out, std::optional<Tensor> grad_lse,
                                     std::optional<Tensor> grad_gate_sum, std::vector<Tensor> gate,
                                     int64_t gate_mode) {
  const torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  GenhoiFlowGateBackward call{};
  call.in = attention_of_result(out, gate, gate_mode);
  call.out = tokens_of(out);
  call.dout = tokens_of(grad_out);
  call.dlse = data<const float>(grad_lse);
  call.dgate_sum = data<const float>(grad_gate_sum);
  GenhoiPlan plan{};
  const auto planner =
      function<decltype(genhoi_flow_gate_backward_plan)>("genhoi_flow_gate_backward_plan");
  check(planner(&call, &plan), "gate_backward");
  const int64_t parts = plan.grid[0], dim = out.size(3);
  Tensor grad = empty_as(out);
  std::vector<Tensor> found = {
      grad,
      empty(out, {out.size(0), out.size(2), out.size(1)}, ScalarType::Float),
      empty(out, {parts, dim / 2, dim}, ScalarType::Float),
      empty(out, {parts, dim / 2}, ScalarType::Float),
      empty(out, {parts, 1, dim / 2}, ScalarType::Float),
      empty(out, {parts, 1}, ScalarType::Float),
  };
  call.grad = grad.data_ptr();
  call.delta = floats(found[1]);
  call.du_x = floats(found[2]);
  call.dfc1_bias = floats(found[3]);
  call.dfc2_weight = floats(found[4]);
  call.dfc2_bias = floats(found[5]);
  const auto launch = function<decltype(genhoi_flow_gate_backward)>("genhoi_flow_gate_backward");
  check(launch(&call, current_stream(out)), "gate_backward");
  return found;
}

std::vector<Tensor> attention_backward_op(const AttentionArguments& arguments, Tensor grad,
                                          Tensor lse, Tensor delta, int64_t wanted_bits) {
  const Tensor& q = arguments.q;
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  const WantedGrads wanted(wanted_bits);
  GenhoiBackward call{};
  call.in = attention_of(arguments);
  call.dout = tokens_of(grad);
  call.lse = floats(lse);
  call.delta = floats(delta);
  // A kernel writes all of its results, of which only the wanted ones are handed out.
  std::vector<Tensor> written, grads;
  const auto new_grad = [&](bool is_wanted, const Tensor& of) {
    written.push_back(empty_as(of));
    if (is_wanted) grads.push_back(written.back());
    return written.back().data_ptr();
  };
  if (wanted.q) call.dq = new_grad(true, q);
  if (wanted.k || wanted.v) {
    call.dk = new_grad(wanted.k, arguments.k);
    call.dv = new_grad(wanted.v, arguments.v);
  }
  std::optional<Tensor> parts;
  const auto& k_ref = arguments.k_ref;
  const auto& ref_bias = arguments.ref_bias;
  if (k_ref) call.ref_batch = static_cast<int32_t>(k_ref->size(0));
  if (k_ref && (wanted.k_ref || wanted.v_ref || wanted.ref_bias)) {
    call.dk_ref = new_grad(wanted.k_ref, *k_ref);
    call.dv_ref = new_grad(wanted.v_ref, *arguments.v_ref);
  }
  if (ref_bias && wanted.ref_bias) {
    GenhoiPlan plan{};
    const auto planner =
        function<decltype(genhoi_attention_backward_plan)>("genhoi_attention_backward_plan");
    check(planner(&call, GENHOI_BWD_REF_DKDV, &plan), "attention_backward");
    parts = empty(q, {call.ref_batch, q.size(2), plan.grid[0]}, ScalarType::Float);
    grads.push_back(empty_as(*ref_bias));
    call.dref_bias = floats(grads.back());
    call.bias_parts = floats(*parts);
  }
  GenhoiScratch scratch{};
  const auto measure =
      function<decltype(genhoi_attention_backward_scratch)>("genhoi_attention_backward_scratch");
  check(measure(&call, &scratch), "attention_backward");
  std::optional<Tensor> sums, counters;
  if (scratch.is_faster) {
    sums = empty(q, {scratch.dq_sums}, ScalarType::Float);
    counters = empty(q, {scratch.dq_counters}, ScalarType::Int);
    call.dq_sums = floats(*sums);
    call.dq_counters = static_cast<int32_t*>(counters->data_ptr());
  }
  const auto launch = function<decltype(genhoi_attention_backward)>("genhoi_attention_backward");
  check(launch(&call, current_stream(q)), "attention_backward");
  return grads;
}

Tensor norm_rope_forward_op(Tensor x, std::optional<Tensor> weight, Tensor cosines, Tensor sines,
                            Tensor places, int64_t row_table, int64_t col_table, double eps,
                            bool inverse) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  GenhoiNormRope call = norm_rope_of(x, weight, cosines, sines, places, row_table, col_table, eps);
  Tensor y = empty_as(x);
  call.inverse = inverse;
  call.y = y.data_ptr();
  const auto launch = function<decltype(genhoi_norm_rope_forward)>("genhoi_norm_rope_forward");
  check(launch(&call, current_stream(x)), "norm_rope_forward");
  return y;
}

std::vector<Tensor> norm_rope_backward_op(Tensor grad, Tensor x, Tensor weight, Tensor cosines,
                                          Tensor sines, Tensor places, int64_t row_table,
                                          int64_t col_table, double eps) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  GenhoiNormRopeBackward call{};
  call.in = norm_rope_of(x, weight, cosines, sines, places, row_table, col_table, eps);
  call.grad = tokens_of(grad);
  const int64_t values = x.size(2) * x.size(3);
  Tensor grad_x = empty_as(x), grad_weight = empty(x, {values}, ScalarType::Float);
  call.grad_x = grad_x.data_ptr();
  GenhoiPlan plan{};
  const auto planner =
      function<decltype(genhoi_norm_rope_backward_plan)>("genhoi_norm_rope_backward_plan");
  check(planner(&call, &plan), "norm_rope_backward");
  Tensor partials = empty(x, {plan.grid[0], values}, ScalarType::Float);
  call.grad_weight = floats(grad_weight);
  call.partials = floats(partials);
  const auto launch = function<decltype(genhoi_norm_rope_backward)>("genhoi_norm_rope_backward");
  check(launch(&call, current_stream(x)), "norm_rope_backward");
  return {grad_x, grad_weight};
}

}  // namespace genhoi::cuda
