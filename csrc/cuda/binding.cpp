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

GenhoiAttention attention_of(const Tensor& q, const Tensor& k, const Tensor& v,
                             const std::optional<Tensor>& k_ref, const std::optional<Tensor>& v_ref,
                             const std::optional<Tensor>& bits,
                             const std::optional<Tensor>& tile_bits,
                             const std::optional<Tensor>& segments,
                             const std::optional<Tensor>& ref_bias, const std::vector<Tensor>& gate,
                             int64_t gate_mode, double scale) {
  GenhoiAttention in{};
  in.dtype = q.scalar_type() == ScalarType::Half ? GENHOI_FLOAT16 : GENHOI_BFLOAT16;
  in.batch = static_cast<int32_t>(q.size(0));
  in.rows = static_cast<int32_t>(q.size(1));
  in.heads = static_cast<int32_t>(q.size(2));
  in.head_dim = static_cast<int32_t>(q.size(3));
  in.keys = static_cast<int32_t>(k.size(1));
  in.ref_tokens = k_ref ? static_cast<int32_t>(k_ref->size(1)) : 0;
  in.references = segments ? static_cast<int32_t>(segments->size(0)) - 1 : 0;
  in.scale = static_cast<float>(scale);
  in.q = tokens_of(q);
  in.k = tokens_of(k);
  in.v = tokens_of(v);
  if (k_ref) in.k_ref = tokens_of(*k_ref);
  if (v_ref) in.v_ref = tokens_of(*v_ref);
  in.segments = data<const int32_t>(segments);
  in.ref_bias = data<const float>(ref_bias);
  in.bits = data<const int32_t>(bits);
  in.bits_batch = batch_stride(bits);
  in.tile_bits = data<const int32_t>(tile_bits);
  in.tile_bits_batch = batch_stride(tile_bits);
  in.gate_mode = static_cast<int32_t>(gate_mode);
  if (!gate.empty()) {
    const auto floats = [&](int i) { return static_cast<const float*>(gate[i].data_ptr()); };
    in.gate = {floats(0), floats(1), gate[2].data_ptr(), floats(3), floats(4), floats(5)};
  }
  return in;
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
                            int64_t row_table, int64_t col_table, bool frame_is_head, double eps) {
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
  call.angles = {floats(cosines),
                 floats(sines),
                 static_cast<const int32_t*>(places.data_ptr()),
                 static_cast<int32_t>(row_table),
                 static_cast<int32_t>(col_table),
                 frame_is_head};
  return call;
}

}  // namespace

void open_library(const std::string& path) {
  if (library != nullptr) return;
  stream_of = reinterpret_cast<StreamOf*>(torch_function("aoti_torch_get_current_cuda_stream"));
  library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(dlerror());
}

std::vector<Tensor> attention_forward_op(Tensor q, Tensor k, Tensor v, std::optional<Tensor> k_ref,
                                         std::optional<Tensor> v_ref, std::optional<Tensor> bits,
                                         std::optional<Tensor> tile_bits,
                                         std::optional<Tensor> segments,
                                         std::optional<Tensor> ref_bias, std::vector<Tensor> gate,
                                         int64_t gate_mode, double scale, bool keep_ungated) {
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  GenhoiForward call{};
  call.in = attention_of(q, k, v, k_ref, v_ref, bits, tile_bits, segments, ref_bias, gate,
                         gate_mode, scale);
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
  call.in = attention_of(out, out, out, {}, {}, {}, {}, {}, {}, {}, GENHOI_GATE_NONE, 1.0);
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
  call.in = attention_of(out, out, out, {}, {}, {}, {}, {}, {}, gate, gate_mode, 1.0);
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

std::vector<Tensor> attention_backward_op(Tensor grad, Tensor lse, Tensor delta, Tensor q, Tensor k,
                                          Tensor v, std::optional<Tensor> k_ref,
                                          std::optional<Tensor> v_ref, std::optional<Tensor> bits,
                                          std::optional<Tensor> tile_bits,
                                          std::optional<Tensor> segments,
                                          std::optional<Tensor> ref_bias, double scale) {
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  GenhoiBackward call{};
  call.in = attention_of(q, k, v, k_ref, v_ref, bits, tile_bits, segments, ref_bias, {},
                         GENHOI_GATE_NONE, scale);
  call.dout = tokens_of(grad);
  call.lse = floats(lse);
  call.delta = floats(delta);
  std::vector<Tensor> grads = {empty_as(q), empty_as(k), empty_as(v)};
  call.dq = grads[0].data_ptr();
  call.dk = grads[1].data_ptr();
  call.dv = grads[2].data_ptr();
  std::optional<Tensor> parts;
  if (k_ref) {
    call.ref_batch = static_cast<int32_t>(k_ref->size(0));
    grads.insert(grads.end(), {empty_as(*k_ref), empty_as(*v_ref)});
    call.dk_ref = grads[3].data_ptr();
    call.dv_ref = grads[4].data_ptr();
  }
  if (ref_bias) {
    GenhoiPlan plan{};
    const auto planner =
        function<decltype(genhoi_attention_backward_plan)>("genhoi_attention_backward_plan");
    check(planner(&call, GENHOI_BWD_REF_DKDV, &plan), "attention_backward");
    parts = empty(q, {call.ref_batch, q.size(2), plan.grid[0]}, ScalarType::Float);
    grads.push_back(empty_as(*ref_bias));
    call.dref_bias = floats(grads.back());
    call.bias_parts = floats(*parts);
  }
  const auto launch = function<decltype(genhoi_attention_backward)>("genhoi_attention_backward");
  check(launch(&call, current_stream(q)), "attention_backward");
  return grads;
}

Tensor norm_rope_forward_op(Tensor x, std::optional<Tensor> weight, Tensor cosines, Tensor sines,
                            Tensor places, int64_t row_table, int64_t col_table, bool frame_is_head,
                            double eps, bool inverse) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  GenhoiNormRope call =
      norm_rope_of(x, weight, cosines, sines, places, row_table, col_table, frame_is_head, eps);
  Tensor y = empty_as(x);
  call.inverse = inverse;
  call.y = y.data_ptr();
  const auto launch = function<decltype(genhoi_norm_rope_forward)>("genhoi_norm_rope_forward");
  check(launch(&call, current_stream(x)), "norm_rope_forward");
  return y;
}

std::vector<Tensor> norm_rope_backward_op(Tensor grad, Tensor x, Tensor weight, Tensor cosines,
                                          Tensor sines, Tensor places, int64_t row_table,
                                          int64_t col_table, bool frame_is_head, double eps) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  GenhoiNormRopeBackward call{};
  call.in =
      norm_rope_of(x, weight, cosines, sines, places, row_table, col_table, frame_is_head, eps);
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
