// The C interface of the norm and rotation kernels: a call is checked and launched.
#include "norm_rope.cuh"

#include <cuda_runtime.h>

namespace genhoi::cuda::norm_rope {
namespace {

int round_up(int n, int to) { return (n + to - 1) / to * to; }

bool is_valid(const GenhoiNormRope& call) {
  const int64_t values = static_cast<int64_t>(call.heads) * call.head_dim;
  const int64_t rows = static_cast<int64_t>(call.batch) * call.tokens;
  return call.dtype >= GENHOI_BFLOAT16 && call.dtype <= GENHOI_FLOAT32 && values >= 0 &&
         values % kChunkValues == 0 && values <= kMaxTokenValues && call.head_dim > 0 &&
         call.head_dim % 2 == 0 && rows >= 0 && rows <= INT32_MAX;
}

int value_bytes(const GenhoiNormRope& call) { return call.dtype == GENHOI_FLOAT32 ? 4 : 2; }

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool is_aligned(const GenhoiTokens& tokens, int bytes) {
  return is_aligned(tokens.data) && tokens.batch * bytes % 16 == 0 &&
         tokens.token * bytes % 16 == 0 && tokens.head * bytes % 16 == 0;
}

bool is_wide(const GenhoiNormRope& call) {
  return call.head_dim % kChunkValues == 0 && is_aligned(call.x, value_bytes(call)) &&
         is_aligned(call.weight);
}

int rows_of(const GenhoiNormRope& call) { return call.heads ? call.batch * call.tokens : 0; }
int chunks_of(const GenhoiNormRope& call) { return call.heads * call.head_dim / kChunkValues; }

GenhoiPlan plan_of(const GenhoiNormRope& call, int blocks) {
  const int threads = round_up((chunks_of(call) + kChunksPerThread - 1) / kChunksPerThread, 32);
  return {{static_cast<uint32_t>(blocks), 1, 1}, static_cast<uint32_t>(threads), 0};
}

GenhoiPlan forward_plan(const GenhoiNormRope& call) { return plan_of(call, rows_of(call)); }

GenhoiPlan backward_plan(const GenhoiNormRope& call) {
  const int rows = rows_of(call);
  return plan_of(call, rows < kMaxBackwardBlocks ? rows : kMaxBackwardBlocks);
}

NormRopeShape shape_of(const GenhoiNormRope& call, const GenhoiPlan& plan) {
  return {chunks_of(call), plan.block * kChunkValues % call.head_dim == 0};
}

// Launches Kernel<Element, WIDE> for the call's element type.
template <template <class, bool> class Kernel, class Call>
int launch(const Call& call, const GenhoiNormRope& in, bool wide, const GenhoiPlan& plan,
           cudaStream_t stream) {
  if (plan.grid[0] == 0) return cudaSuccess;
  const auto launch_for = [&](auto element) {
    using Element = decltype(element);
    const auto kernel = wide ? Kernel<Element, true>::kernel : Kernel<Element, false>::kernel;
    kernel<<<plan.grid[0], plan.block, 0, stream>>>(call, shape_of(in, plan));
    return static_cast<int>(cudaGetLastError());
  };
  switch (in.dtype) {
    case GENHOI_BFLOAT16:
      return launch_for(BFloat16());
    case GENHOI_FLOAT16:
      return launch_for(Float16());
    default:
      return launch_for(Float32());
  }
}

template <class Element, bool WIDE>
struct Forward {
  static constexpr auto kernel = norm_rope_fwd<Element, WIDE>;
};

template <class Element, bool WIDE>
struct Backward {
  static constexpr auto kernel = norm_rope_bwd<Element, WIDE>;
};

int sum_partials(const GenhoiNormRopeBackward& call, int parts, cudaStream_t stream) {
  const int values = chunks_of(call.in) * kChunkValues;
  if (values == 0) return cudaSuccess;
  sum_parts<<<round_up(values, kColumns) / kColumns, kColumns * kRows, 0, stream>>>(
      call.partials, parts, values, call.grad_weight);
  return cudaGetLastError();
}

}  // namespace
}  // namespace genhoi::cuda::norm_rope

int genhoi_norm_rope_forward_plan(const GenhoiNormRope* call, GenhoiPlan* plan) {
  using namespace genhoi::cuda::norm_rope;
  if (!is_valid(*call) || !is_aligned(call->y)) return cudaErrorInvalidValue;
  *plan = forward_plan(*call);
  return cudaSuccess;
}

int genhoi_norm_rope_forward(const GenhoiNormRope* call, void* stream) {
  using namespace genhoi::cuda::norm_rope;
  GenhoiPlan plan;
  if (const int error = genhoi_norm_rope_forward_plan(call, &plan)) return error;
  return launch<Forward>(*call, *call, is_wide(*call), plan, static_cast<cudaStream_t>(stream));
}

int genhoi_norm_rope_backward_plan(const GenhoiNormRopeBackward* call, GenhoiPlan* plan) {
  using namespace genhoi::cuda::norm_rope;
  const bool no_weight = call->in.heads > 0 && !call->in.weight;
  if (!is_valid(call->in) || no_weight || !is_aligned(call->grad_x) ||
      !is_aligned(call->partials)) {
    return cudaErrorInvalidValue;
  }
  *plan = backward_plan(call->in);
  return cudaSuccess;
}

int genhoi_norm_rope_backward(const GenhoiNormRopeBackward* call, void* stream) {
  using namespace genhoi::cuda::norm_rope;
  GenhoiPlan plan;
  if (const int error = genhoi_norm_rope_backward_plan(call, &plan)) return error;
  const auto on = static_cast<cudaStream_t>(stream);
  const bool both_wide = is_wide(call->in) && is_aligned(call->grad, value_bytes(call->in));
  if (const int error = launch<Backward>(*call, call->in, both_wide, plan, on)) return error;
  return sum_partials(*call, plan.grid[0], on);
}
