// The flow gate's gradient on a tile of attention rows (docs/op.md, "Backward").
#pragma once

#include "cpu/attention/flow_gate.h"
#include "cpu/attention/tiles.h"

namespace genhoi::cpu {
namespace {

// Where the gradients of the gate's weights are summed, in double: a row adds the same to all of
// them where the gate is shared, and a float would round the same way every time. fc1_weight is
// padded for the register tiles.
struct GateGradSums {
  static int64_t size(const PackedGate& g) { return 2 * g.dim + fc1_size(g) + 2 * g.hidden + 1; }
  static int64_t fc1_size(const PackedGate& g) {
    return round_up(g.hidden, kTileRows) * g.dim_padded;
  }
  double *norm_weight, *norm_bias, *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias;
  GateGradSums(const PackedGate& g, double* at)
      : norm_weight(at),
        norm_bias(norm_weight + g.dim),
        fc1_weight(norm_bias + g.dim),
        fc1_bias(fc1_weight + fc1_size(g)),
        fc2_weight(fc1_bias + g.hidden),
        fc2_bias(fc2_weight + g.hidden) {}
};

struct GateGradScratch {
  Buffer<float> gelu_slope;     // [hidden_padded] of one row
  Buffer<float> grad_hidden;    // [kBlock, hidden] gradient of W1 LN(o) + b1
  Buffer<float> grad_hidden_t;  // [hidden, kBlock] the same, transposed
  Buffer<float> normed;         // panels of LN(o)
  Buffer<float> grad_normed;    // [kBlock, dim_padded] gradient of LN(o)
  Buffer<float> fc1_weight;     // gradient of W1 from one tile
  explicit GateGradScratch(const PackedGate& g)
      : gelu_slope(g.hidden_padded),
        grad_hidden(kBlock * g.hidden),
        grad_hidden_t(round_up(g.hidden, kTileRows) * kBlock),
        normed(kBlock * g.dim_padded),
        grad_normed(kBlock * g.dim_padded),
        fc1_weight(GateGradSums::fc1_size(g)) {}
};

// The gradient of the gate on a tile of rows, given that of each row's logit.
class GateBackward {
 public:
  explicit GateBackward(const PackedGate& g)
      : g_(g), scratch_(g), grad_scratch_(g), grad_logit_(kBlock) {}

  // Takes a tile of attention rows o [rows, dim]. Turns `grad_o`, the gradient of the gated rows,
  // into that of o, and adds the weights' gradients to `sums`.
  void run(const AttentionBackward& call, const TileRows& rows, const float* o, float* grad_o,
           const GateGradSums& sums) {
    const Attention& in = call.in;
    gate_logits(g_, o, in.dim, rows.count, scratch_);
    for (int64_t i = 0; i < rows.count; i++) {
      if (in.gate_mode == GateMode::kSum) {
        grad_logit_[i] = call.grad_gate_sum ? call.grad_gate_sum[rows.b * in.heads + rows.h] : 0.f;
        continue;
      }
      const float gate = sigmoid(scratch_.logits[i]);
      const double grad_gate = dot(grad_o + i * in.dim, o + i * in.dim, in.dim);
      scale_row(grad_o + i * in.dim, in.dim, gate);
      grad_logit_[i] = static_cast<float>(grad_gate) * gate * (1.f - gate);
    }
    fc2_backward(rows.count, sums);
    fc1_backward(rows.count, sums);
    for (int64_t i = 0; i < rows.count; i++) layer_norm_backward(i, grad_o + i * in.dim, sums);
  }

 private:
  void fc2_backward(int64_t rows, const GateGradSums& sums) {
    GateGradScratch& t = grad_scratch_;
    std::memset(t.grad_hidden_t, 0, round_up(g_.hidden, kTileRows) * kBlock * sizeof(float));
    for (int64_t i = 0; i < rows; i++) {
      const float* hidden = scratch_.hidden + i * g_.hidden_padded;
      const float dl = grad_logit_[i];
      sums.fc2_bias[0] += dl;
      for (int64_t j = 0; j < g_.hidden_padded; j += kVector) {
        const Gelu gelu(load(hidden + j));
        store(scratch_.activation + j, gelu.value);
        store(t.gelu_slope + j, gelu.slope);
      }
      for (int64_t j = 0; j < g_.hidden; j++) {
        const float du = dl * g_.w.fc2_weight[j] * t.gelu_slope[j];
        sums.fc2_weight[j] += dl * scratch_.activation[j];
        sums.fc1_bias[j] += du;
        t.grad_hidden[i * g_.hidden + j] = du;
        t.grad_hidden_t[j * kBlock + i] = du;
      }
    }
  }

  void fc1_backward(int64_t rows, const GateGradSums& sums) {
    GateGradScratch& t = grad_scratch_;
    zero_padding(t.grad_hidden, rows, g_.hidden);
    pack_b<float>({.data = scratch_.normed, .rows = rows, .columns = g_.dim, .stride = g_.dim},
                  kBlock, t.normed);
    const int64_t panels = g_.dim_padded / kPanel;
    gemm<false, float>({.rows = g_.hidden, .panels = panels, .depth = rows},
                       {.data = t.grad_hidden_t, .stride = kBlock},
                       {.data = t.normed, .panel_stride = kBlock * kPanel},
                       {.data = t.fc1_weight, .stride = g_.dim_padded});
    for (int64_t j = 0; j < GateGradSums::fc1_size(g_); j++) {
      sums.fc1_weight[j] += t.fc1_weight[j];
    }
    gemm<false, float>({.rows = rows, .panels = panels, .depth = g_.hidden},
                       {.data = t.grad_hidden, .stride = g_.hidden},
                       {.data = g_.fc1_transposed, .panel_stride = g_.hidden * kPanel},
                       {.data = t.grad_normed, .stride = g_.dim_padded});
  }

  // Adds to the gradient of row i of o.
  void layer_norm_backward(int64_t i, float* grad_o, const GateGradSums& sums) {
    const float* dn = grad_scratch_.grad_normed + i * g_.dim_padded;
    const float *x_hat = scratch_.x_hat + i * g_.dim, *weight = g_.w.norm_weight;
    double sum_dx = 0., sum_dx_x = 0.;  // of the gradient of x_hat, and of its product with x_hat
    for (int64_t d = 0; d < g_.dim; d++) {
      sums.norm_weight[d] += dn[d] * x_hat[d];
      sums.norm_bias[d] += dn[d];
      sum_dx += dn[d] * weight[d];
      sum_dx_x += dn[d] * weight[d] * x_hat[d];
    }
    const float mean_dx = static_cast<float>(sum_dx / g_.dim);
    const float mean_dx_x = static_cast<float>(sum_dx_x / g_.dim);
    for (int64_t d = 0; d < g_.dim; d++) {
      grad_o[d] += scratch_.rstd[i] * (dn[d] * weight[d] - mean_dx - x_hat[d] * mean_dx_x);
    }
  }

  const PackedGate& g_;
  GateScratch scratch_;
  GateGradScratch grad_scratch_;
  Buffer<float> grad_logit_;
};

}  // namespace
}  // namespace genhoi::cpu
