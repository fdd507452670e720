// The flow gate on a tile of attention rows: logit = w2 . GELU(W1 LN(o) + b1) + b2.
#pragma once

#include <cmath>

#include "cpu/attention/gelu.h"
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/pack.h"
#include "cpu/row_math.h"
#include "cpu/runtime.h"

namespace genhoi::cpu {
namespace {

constexpr double kGateNormEps = 1e-5;

inline float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// W1 packed for both directions; made once a call, read by every thread.
struct PackedGate {
  const Gate& w;
  int64_t dim, hidden, dim_padded, hidden_padded;
  Buffer<float> fc1;                   // panels of W1^T: hidden activations
  Buffer<float> fc1_transposed;        // panels of W1: their gradient
  Buffer<float> fc1_bias, fc2_weight;  // padded with zeros to hidden_padded

  PackedGate(const Gate& gate, int64_t head_dim)
      : w(gate),
        dim(head_dim),
        hidden(head_dim / 2),
        dim_padded(round_up(head_dim, kPanel)),
        hidden_padded(round_up(head_dim / 2, kPanel)),
        fc1(hidden_padded * dim),
        fc1_transposed(hidden * dim_padded),
        fc1_bias(hidden_padded),
        fc2_weight(hidden_padded) {
    const Matrix weight = {.data = w.fc1_weight, .rows = hidden, .columns = dim, .stride = dim};
    pack_b_transposed<float>(weight, fc1);
    pack_b<float>(weight, hidden, fc1_transposed);
    for (int64_t j = 0; j < hidden_padded; j++) {
      fc1_bias[j] = j < hidden ? w.fc1_bias[j] : 0.f;
      fc2_weight[j] = j < hidden ? w.fc2_weight[j] : 0.f;
    }
  }
};

struct GateScratch {
  Buffer<float> x_hat;       // [kBlock, dim] LN(o) before its affine part
  Buffer<float> normed;      // [kBlock, dim] LN(o)
  Buffer<float> hidden;      // [kBlock, hidden_padded] W1 LN(o) + b1
  Buffer<float> rstd;        // [kBlock]
  Buffer<float> logits;      // [kBlock]
  Buffer<float> activation;  // [hidden_padded] GELU of one row's hidden
  explicit GateScratch(const PackedGate& g)
      : x_hat(kBlock * g.dim),
        normed(kBlock * g.dim),
        hidden(kBlock * g.hidden_padded),
        rstd(kBlock),
        logits(kBlock),
        activation(g.hidden_padded) {}
};

// Rows of A up to the next multiple of kTileRows, which the register tiles also read, become zeros.
inline void zero_padding(float* x, int64_t rows, int64_t dim) {
  std::memset(x + rows * dim, 0, (round_up(rows, kTileRows) - rows) * dim * sizeof(float));
}

// LN of row i of a tile, into x_hat, rstd and normed.
inline void layer_norm_row(const PackedGate& g, const float* o, int64_t i, GateScratch& s) {
  float *x_hat = s.x_hat + i * g.dim, *normed = s.normed + i * g.dim;
  const double mean = sum_row(o, g.dim) / g.dim;
  for (int64_t d = 0; d < g.dim; d++) x_hat[d] = static_cast<float>(o[d] - mean);
  const double var = dot(x_hat, x_hat, g.dim);
  s.rstd[i] = static_cast<float>(1. / std::sqrt(var / g.dim + kGateNormEps));
  for (int64_t d = 0; d < g.dim; d++) {
    x_hat[d] *= s.rstd[i];
    normed[d] = x_hat[d] * g.w.norm_weight[d] + g.w.norm_bias[d];
  }
}

// Logits of the rows of o [rows, dim] at `o_stride`; the scratch keeps what gate_backward() reads.
inline void gate_logits(const PackedGate& g, const float* o, int64_t o_stride, int64_t rows,
                        GateScratch& s) {
  for (int64_t i = 0; i < rows; i++) layer_norm_row(g, o + i * o_stride, i, s);
  zero_padding(s.normed, rows, g.dim);
  gemm<false, float>({.rows = rows, .panels = g.hidden_padded / kPanel, .depth = g.dim},
                     {.data = s.normed, .stride = g.dim},
                     {.data = g.fc1, .panel_stride = g.dim * kPanel},
                     {.data = s.hidden, .stride = g.hidden_padded});
  for (int64_t i = 0; i < rows; i++) {
    float* hidden = s.hidden + i * g.hidden_padded;
    for (int64_t j = 0; j < g.hidden_padded; j += kVector) {
      const Vec u = load(hidden + j) + load(g.fc1_bias + j);
      store(hidden + j, u);
      store(s.activation + j, Gelu(u).value);
    }
    s.logits[i] =
        static_cast<float>(dot(g.fc2_weight, s.activation, g.hidden_padded) + g.w.fc2_bias[0]);
  }
}

}  // namespace
}  // namespace genhoi::cpu
