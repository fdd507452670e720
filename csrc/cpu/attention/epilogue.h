// The end of a tile of query rows in the forward pass: softmax's division, LSE, flow gate, stores.
#pragma once

#include <cmath>

#include "cpu/attention/flow_gate.h"
#include "cpu/attention/softmax.h"
#include "cpu/attention/tiles.h"

namespace genhoi::cpu {
namespace {

// Divides a row by its row_sum. Returns its LSE.
template <class Element>
inline float normalize_row(QueryTile<Element>& tile, int64_t i, int64_t dim, int64_t dim_padded) {
  float* o = tile.acc_o + i * dim_padded;
  const float row_sum = sum(load(tile.row_sum + i * kVector));
  // No key at all: zeros and an LSE of -inf.
  const float inverse = row_sum == 0.f ? 0.f : 1.f / row_sum;
  for (int64_t d = 0; d < dim; d++) o[d] *= inverse;
  if (row_sum == 0.f) return -__builtin_inff();
  return static_cast<float>(tile.row_max[i] * kLn2 + std::log(static_cast<double>(row_sum)));
}

// Returns the sum of the gate's logits, with GateMode::kSum. `gate` and `scratch` null: no gate.
template <class Element>
float epilogue(const AttentionForward& call, const PackedGate* gate, GateScratch* scratch,
               const TileRows& rows, QueryTile<Element>& tile, int64_t dim_padded) {
  const Attention& in = call.in;
  float* lse = call.lse + (rows.b * in.heads + rows.h) * in.rows + rows.first;
  for (int64_t i = 0; i < rows.count; i++) {
    lse[i] = normalize_row(tile, i, in.dim, dim_padded);
  }
  if (gate) gate_logits(*gate, tile.acc_o, dim_padded, rows.count, *scratch);
  float logit_sum = 0.f;
  for (int64_t i = 0; i < rows.count; i++) {
    float* o = tile.acc_o + i * dim_padded;
    if (in.gate_mode == GateMode::kToken) {
      if (call.ungated.data) {
        store_row(o, in.dtype, in.dim, row_at(call.ungated, in.dtype, rows.b, rows[i], rows.h));
      }
      scale_row(o, in.dim, sigmoid(scratch->logits[i]));
    } else if (in.gate_mode == GateMode::kSum) {
      logit_sum += scratch->logits[i];
    }
    store_row(o, in.dtype, in.dim, row_at(call.out, in.dtype, rows.b, rows[i], rows.h));
  }
  return logit_sum;
}

}  // namespace
}  // namespace genhoi::cpu
