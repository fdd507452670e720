// The flow gate on a tile of attention rows: logit = w2 . GELU(W1 LN(o) + b1) + b2, and its
// gradient (docs/op.md, "Backward").
#pragma once

#include <cmath>

#include "tiles.h"

namespace genhoi::cpu {
namespace {

constexpr double kGateNormEps = 1e-5;

// GELU(u) = u Phi(u) and its slope Phi(u) + u phi(u), together: both need exp(-u^2 / 2).
struct Gelu {
  Vec value, slope;
  explicit Gelu(Vec u) {
    // Phi(-|u|) exp(u^2 / 2) * 2 as a polynomial in 1 / (1 + c |u|), highest power first: the least
    // relative error of its degree for |u| < 14 (5e-8).
    constexpr int kTerms = 9;
    constexpr float kTerm[kTerms] = {-0.158139527f, 0.587833285f,   -0.568460763f,
                                     0.614742160f,  -0.0728278011f, 0.241426930f,
                                     0.170809418f,  0.184675500f,   -5.92748511e-5f};
    const Vec size = u < Vec{} ? -u : u;
    const Vec t = splat(1.f) / (splat(1.f) + size * splat(0.325f * 0.70710678f));
    Vec p = splat(kTerm[0]);
#pragma GCC unroll 9
    for (int i = 1; i < kTerms; i++) p = p * t + splat(kTerm[i]);
    const Vec density = exp2(u * u * splat(static_cast<float>(-0.5 * kLog2e)));
    const Vec tail = splat(0.5f) * p * density;
    const Vec phi = u < Vec{} ? tail : splat(1.f) - tail;
    value = u * phi;
    slope = phi + u * density * splat(0.39894228f);
  }
};

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
    pack_right_transposed<float>(w.fc1_weight, hidden, dim, dim, fc1);
    pack_right<float>(w.fc1_weight, hidden, dim, dim, hidden, fc1_transposed);
    for (int64_t j = 0; j < hidden_padded; j++) {
      fc1_bias[j] = j < hidden ? w.fc1_bias[j] : 0.f;
      fc2_weight[j] = j < hidden ? w.fc2_weight[j] : 0.f;
    }
  }
};

struct GateScratch {
  Buffer<float> centred;     // [kBlock, dim] LN(o) before its affine
  Buffer<float> normed;      // [kBlock, dim]
  Buffer<float> hidden;      // [kBlock, hidden_padded] W1 n + b1
  Buffer<float> rstd;        // [kBlock]
  Buffer<float> logits;      // [kBlock]
  Buffer<float> activation;  // [hidden_padded] GELU(u) of one row
  explicit GateScratch(const PackedGate& g)
      : centred(kBlock * g.dim),
        normed(kBlock * g.dim),
        hidden(kBlock * g.hidden_padded),
        rstd(kBlock),
        logits(kBlock),
        activation(g.hidden_padded) {}
};

inline void gate_logits(const PackedGate& g, const float* o, int64_t o_stride, int64_t rows,
                        GateScratch& s) {
  for (int64_t i = 0; i < rows; i++) {
    const float* x = o + i * o_stride;
    float *centred = s.centred + i * g.dim, *normed = s.normed + i * g.dim;
    const double mean = total(x, g.dim) / g.dim;
    for (int64_t d = 0; d < g.dim; d++) centred[d] = static_cast<float>(x[d] - mean);
    const double var = dot(centred, centred, g.dim);
    s.rstd[i] = static_cast<float>(1. / std::sqrt(var / g.dim + kGateNormEps));
    for (int64_t d = 0; d < g.dim; d++) {
      centred[d] *= s.rstd[i];
      normed[d] = centred[d] * g.w.norm_weight[d] + g.w.norm_bias[d];
    }
  }
  zero_padding(s.normed, rows, g.dim);
  gemm<false, float>(rows, g.hidden_padded / kPanel, g.dim, s.normed, g.dim, g.fc1, g.dim * kPanel,
                     s.hidden, g.hidden_padded);
  for (int64_t i = 0; i < rows; i++) {
    float* u = s.hidden + i * g.hidden_padded;
    for (int64_t j = 0; j < g.hidden_padded; j += kVector) {
      const Vec x = load(u + j) + load(g.fc1_bias + j);
      store(u + j, x);
      store(s.activation + j, Gelu(x).value);
    }
    s.logits[i] =
        static_cast<float>(dot(g.fc2_weight, s.activation, g.hidden_padded) + g.w.fc2_bias[0]);
  }
}

// Where the gradients of the gate's weights are summed, in double: a row adds the same to all of
// them where the gate is shared, and a float would round the same way every time. fc1_weight is
// padded for the register tiles.
struct GateSums {
  static int64_t size(const PackedGate& g) { return 2 * g.dim + fc1_size(g) + 2 * g.hidden + 1; }
  static int64_t fc1_size(const PackedGate& g) {
    return round_up(g.hidden, kTileRows) * g.dim_padded;
  }
  double *norm_weight, *norm_bias, *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias;
  GateSums(const PackedGate& g, double* at)
      : norm_weight(at),
        norm_bias(norm_weight + g.dim),
        fc1_weight(norm_bias + g.dim),
        fc1_bias(fc1_weight + fc1_size(g)),
        fc2_weight(fc1_bias + g.hidden),
        fc2_bias(fc2_weight + g.hidden) {}
};

struct GateGradScratch {
  Buffer<float> activation_slope;  // [hidden_padded] of one row
  Buffer<float> slope;             // [kBlock, hidden] gradient of W1 n + b1
  Buffer<float> slope_t;           // [hidden, kBlock] the same, transposed
  Buffer<float> normed;            // panels of n
  Buffer<float> grad_norm;         // [kBlock, dim_padded] gradient of n
  Buffer<float> fc1_weight;        // gradient of W1 from one tile
  explicit GateGradScratch(const PackedGate& g)
      : activation_slope(g.hidden_padded),
        slope(kBlock * g.hidden),
        slope_t(round_up(g.hidden, kTileRows) * kBlock),
        normed(kBlock * g.dim_padded),
        grad_norm(kBlock * g.dim_padded),
        fc1_weight(GateSums::fc1_size(g)) {}
};

// Adds the gate's gradient to `grad_o` [rows, dim] and to `sums`, given the gradient of each
// row's logit; `s` is what gate_logits left.
inline void gate_backward(const PackedGate& g, const float* grad_logit, int64_t rows,
                          const GateScratch& s, GateGradScratch& t, float* grad_o,
                          const GateSums& sums) {
  std::memset(t.slope_t, 0, round_up(g.hidden, kTileRows) * kBlock * sizeof(float));
  for (int64_t i = 0; i < rows; i++) {
    const float* u = s.hidden + i * g.hidden_padded;
    const float dl = grad_logit[i];
    sums.fc2_bias[0] += dl;
    for (int64_t j = 0; j < g.hidden_padded; j += kVector) {
      const Gelu gelu(load(u + j));
      store(s.activation + j, gelu.value);
      store(t.activation_slope + j, gelu.slope);
    }
    for (int64_t j = 0; j < g.hidden; j++) {
      const float du = dl * g.w.fc2_weight[j] * t.activation_slope[j];
      sums.fc2_weight[j] += dl * s.activation[j];
      sums.fc1_bias[j] += du;
      t.slope[i * g.hidden + j] = du;
      t.slope_t[j * kBlock + i] = du;
    }
  }
  zero_padding(t.slope, rows, g.hidden);
  pack_right<float>(s.normed, rows, g.dim, g.dim, kBlock, t.normed);
  gemm<false, float>(g.hidden, g.dim_padded / kPanel, rows, t.slope_t, kBlock, t.normed,
                     kBlock * kPanel, t.fc1_weight, g.dim_padded);
  for (int64_t j = 0; j < GateSums::fc1_size(g); j++) sums.fc1_weight[j] += t.fc1_weight[j];
  gemm<false, float>(rows, g.dim_padded / kPanel, g.hidden, t.slope, g.hidden, g.fc1_transposed,
                     g.hidden * kPanel, t.grad_norm, g.dim_padded);
  for (int64_t i = 0; i < rows; i++) {
    const float *dn = t.grad_norm + i * g.dim_padded, *x = s.centred + i * g.dim;
    double mean = 0., along = 0.;
    for (int64_t d = 0; d < g.dim; d++) {
      sums.norm_weight[d] += dn[d] * x[d];
      sums.norm_bias[d] += dn[d];
      mean += dn[d] * g.w.norm_weight[d];
      along += dn[d] * g.w.norm_weight[d] * x[d];
    }
    const float mean_slope = static_cast<float>(mean / g.dim);
    const float along_slope = static_cast<float>(along / g.dim);
    for (int64_t d = 0; d < g.dim; d++) {
      grad_o[i * g.dim + d] +=
          s.rstd[i] * (dn[d] * g.w.norm_weight[d] - mean_slope - x[d] * along_slope);
    }
  }
}

}  // namespace
}  // namespace genhoi::cpu
