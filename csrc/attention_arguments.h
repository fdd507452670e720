// The arguments of the native attention operators, once. Schemas, what torch calls, and the fields
// of the kernels' structs that have an argument's name follow from the list. The values are put
// together in genhoi_kernels/backends/native.py; they were checked in Python.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace genhoi {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using OptionalTensor = std::optional<Tensor>;
using Integers = std::vector<int64_t>;

// ARGUMENT(type, type in a schema, name). Shapes are those of docs/op.md. ref_starts and tile_bits
// are on the device, for kernels that read them there: where each reference starts and the last one
// ends, [R + 1] int32, and the OR of 64 rows' bits. rope, ref_rope: the tables of three axes and
// the tokens' rows in them, or nothing where keys come rotated.
#define GENHOI_ATTENTION_ARGUMENTS(ARGUMENT)      \
  ARGUMENT(Tensor, "Tensor", q)                   \
  ARGUMENT(Tensor, "Tensor", k)                   \
  ARGUMENT(Tensor, "Tensor", v)                   \
  ARGUMENT(OptionalTensor, "Tensor?", k_ref)      \
  ARGUMENT(OptionalTensor, "Tensor?", v_ref)      \
  ARGUMENT(OptionalTensor, "Tensor?", bits)       \
  ARGUMENT(OptionalTensor, "Tensor?", tile_bits)  \
  ARGUMENT(OptionalTensor, "Tensor?", ref_bias)   \
  ARGUMENT(Tensors, "Tensor[]", gate)             \
  ARGUMENT(Integers, "int[]", ref_lengths)        \
  ARGUMENT(OptionalTensor, "Tensor?", ref_starts) \
  ARGUMENT(Tensors, "Tensor[]", rope)             \
  ARGUMENT(Tensors, "Tensor[]", ref_rope)         \
  ARGUMENT(int64_t, "int", gate_mode)             \
  ARGUMENT(double, "float", scale)

struct AttentionArguments {
#define GENHOI_FIELD(type, schema, name) type name;
  GENHOI_ATTENTION_ARGUMENTS(GENHOI_FIELD)
#undef GENHOI_FIELD
};

// The arguments in a schema, each followed by a comma.
#define GENHOI_SCHEMA_ARGUMENT(type, schema, name) schema " " #name ", "
#define GENHOI_ATTENTION_SCHEMA GENHOI_ATTENTION_ARGUMENTS(GENHOI_SCHEMA_ARGUMENT)

// op(const AttentionArguments&, rest...) as torch calls it: with each argument, then the rest.
template <class Op, class... Arguments>
struct Unpacked;

template <class Result, class... Rest, class... Arguments>
struct Unpacked<Result(const AttentionArguments&, Rest...), Arguments...> {
  template <Result (*op)(const AttentionArguments&, Rest...)>
  static Result call(Arguments... arguments, Rest... rest) {
    return op(AttentionArguments{std::move(arguments)...}, std::move(rest)...);
  }
};

#define GENHOI_THEN_TYPE(type, schema, name) , type
template <class Op>
using UnpackedAttention = Unpacked<Op GENHOI_ATTENTION_ARGUMENTS(GENHOI_THEN_TYPE)>;
#undef GENHOI_THEN_TYPE

#define GENHOI_BOX_ATTENTION(op) TORCH_BOX((&::genhoi::UnpackedAttention<decltype(op)>::call<&op>))

// Sets each field of a kernel's struct that has an argument's name: set(field, argument).
template <class Struct, class Set>
void set_if_there(Struct& to, const Set& set) {
  if constexpr (std::is_invocable_v<const Set&, Struct&>) set(to);
}

template <class Struct, class Set>
void set_fields(Struct& to, const AttentionArguments& from, const Set& set) {
#define GENHOI_SET(type, schema, name) \
  set_if_there(to, [&](auto& s) -> decltype(s.name, void()) { set(s.name, from.name); });
  GENHOI_ATTENTION_ARGUMENTS(GENHOI_SET)
#undef GENHOI_SET
}

// Which gradients a backward pass computes: bits of its argument `wanted`, in the order of
// WantedGrads in genhoi_kernels/spec.py.
struct WantedGrads {
  bool q, k, v, k_ref, v_ref, ref_bias, gate;

  explicit WantedGrads(int64_t bits)
      : q(bits & 1),
        k(bits & 2),
        v(bits & 4),
        k_ref(bits & 8),
        v_ref(bits & 16),
        ref_bias(bits & 32),
        gate(bits & 64) {}
  bool of_video() const { return q || k || v; }
  bool of_references() const { return q || k_ref || v_ref || ref_bias; }
};

}  // namespace genhoi
