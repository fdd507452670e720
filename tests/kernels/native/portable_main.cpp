// The kernels without torch, for CPUs that can only be emulated, vector widths this CPU lacks
// (-DGENHOI_VECTOR_FLOATS, -DGENHOI_TILE_ROWS) and units for bfloat16 that it lacks
// (-DGENHOI_BFLOAT16; the case is then computed in bfloat16): reads one case from stdin, runs
// forward and backward on one thread, writes every result to stdout (test_isa.py).
#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(GENHOI_BFLOAT16)
#define GENHOI_BFLOAT16_UNIT "../tests/kernels/native/software_bfloat16.h"
#endif

#include "cpu/attention/backward.h"
#include "cpu/attention/forward.h"

using namespace genhoi::cpu;

namespace {

template <class T>
std::vector<T> take(int64_t n) {
  std::vector<T> x(n);
  if (n > 0 && std::fread(x.data(), sizeof(T), n, stdin) != static_cast<size_t>(n)) std::exit(2);
  return x;
}

void give(const std::vector<float>& x) { std::fwrite(x.data(), sizeof(float), x.size(), stdout); }

#if defined(GENHOI_BFLOAT16)
using Value = uint16_t;
constexpr DType kDType = DType::kBFloat16;
#else
using Value = float;
constexpr DType kDType = DType::kFloat32;
#endif

std::vector<Value> take_values(int64_t n) {
  const std::vector<float> x = take<float>(n);
  std::vector<Value> values(n);
  store_row(x.data(), kDType, n, values.data());
  return values;
}

void give_values(const std::vector<Value>& values) {
  std::vector<float> x(values.size());
  load_row(values.data(), kDType, x.size(), x.data());
  give(x);
}

Rows contiguous(void* data, int64_t rows, int64_t heads, int64_t dim) {
  return {.data = data, .batch = rows * heads * dim, .row = heads * dim, .head = dim};
}

void run_serially(int64_t items, void (*body)(int64_t, int64_t, void*), void* context) {
  body(0, items, context);
}

struct RotationData {
  std::vector<int32_t> index;
  std::vector<float> axis[3];
  Rotation rope;
  explicit RotationData(int64_t tokens) {
    for (int a = 0; a < 3; a++) {
      const std::vector<int64_t> shape = take<int64_t>(2);
      axis[a] = take<float>(shape[0] * shape[1] * 2);
      rope.axis[a] = axis[a].data();
      rope.pairs[a] = shape[1];
    }
    index = take<int32_t>(tokens * 3);
    rope.index = index.data();
  }
};

}  // namespace

int main() {
  const std::vector<int64_t> size = take<int64_t>(5);  // batch, rows, refs, heads, dim
  const int64_t b = size[0], n = size[1], m = size[2], h = size[3], d = size[4];
  std::vector<Value> q = take_values(b * n * h * d), k = take_values(b * n * h * d),
                     v = take_values(b * n * h * d), k_ref = take_values(m * h * d),
                     v_ref = take_values(m * h * d), grad = take_values(b * n * h * d);
  const std::vector<int32_t> bits = take<int32_t>(b * n);
  const std::vector<float> bias = take<float>(1);
  const int64_t hidden = d / 2, gate_sizes[6] = {d, d, hidden * d, hidden, hidden, 1};
  std::vector<float> w[6], dw[6];
  for (int i = 0; i < 6; i++) {
    w[i] = take<float>(gate_sizes[i]);
    dw[i].resize(gate_sizes[i]);
  }
  const RotationData rope(n), ref_rope(m);

  Attention in{};
  in.batch = b;
  in.rows = in.keys = n;
  in.refs = m;
  in.heads = h;
  in.dim = d;
  in.ref_batch = 1;
  in.dtype = kDType;
  in.q = contiguous(q.data(), n, h, d);
  in.k = contiguous(k.data(), n, h, d);
  in.v = contiguous(v.data(), n, h, d);
  in.k_ref = contiguous(k_ref.data(), m, h, d);
  in.v_ref = contiguous(v_ref.data(), m, h, d);
  in.bits = bits.data();
  in.bits_batch = n;
  in.segments = 1;
  in.lengths = &m;
  in.bias = bias.data();
  in.rope = &rope.rope;
  in.ref_rope = &ref_rope.rope;
  in.gate_mode = GateMode::kToken;
  in.gate = {w[0].data(), w[1].data(), w[2].data(), w[3].data(), w[4].data(), w[5].data()};
  in.scale = 0.25f;

  const Pool pool{1, run_serially};
  std::vector<Value> out(q.size()), ungated(q.size());
  std::vector<float> lse(b * h * n), gate_sum(b * h);
  const AttentionForward forward{
      .in = in,
      .out = contiguous(out.data(), n, h, d),
      .ungated = contiguous(ungated.data(), n, h, d),
      .lse = lse.data(),
      .gate_sum = gate_sum.data(),
  };
  attention_forward(forward, pool);

  std::vector<Value> dq(q.size()), dk(k.size()), dv(v.size()), dk_ref(k_ref.size()),
      dv_ref(v_ref.size());
  std::vector<float> dbias(1);
  AttentionBackward backward{};
  backward.in = in;
  backward.o = contiguous(ungated.data(), n, h, d);
  backward.lse = lse.data();
  backward.grad_out = contiguous(grad.data(), n, h, d);
  backward.dq = contiguous(dq.data(), n, h, d);
  backward.dk = contiguous(dk.data(), n, h, d);
  backward.dv = contiguous(dv.data(), n, h, d);
  backward.dk_ref = contiguous(dk_ref.data(), m, h, d);
  backward.dv_ref = contiguous(dv_ref.data(), m, h, d);
  backward.dbias = dbias.data();
  backward.dgate = {dw[0].data(), dw[1].data(), dw[2].data(),
                    dw[3].data(), dw[4].data(), dw[5].data()};
  attention_backward(backward, pool);

  give_values(out);
  give(lse);
  for (const auto* x : {&dq, &dk, &dv, &dk_ref, &dv_ref}) give_values(*x);
  give(dbias);
  for (const auto& x : dw) give(x);

  // 16-bit conversions: every half of each kind, there and back.
  std::vector<float> halves;
  for (int i = 0; i < 65536; i++) {
    const auto half = static_cast<uint16_t>(i);
    halves.push_back(from_float16(half));
    halves.push_back(from_bfloat16(half));
    halves.push_back(to_float16(from_bfloat16(half)));
    halves.push_back(to_bfloat16(from_float16(half)));
  }
  give(halves);
  return 0;
}
