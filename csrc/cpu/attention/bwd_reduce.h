// Gradients that all heads share, of the references' biases and of the gate's weights: sums of
// partial sums, in double and in a fixed order.
#pragma once

#include "cpu/attention/bwd_flow_gate.h"

namespace genhoi::cpu {
namespace {

class SharedGrads {
 public:
  SharedGrads(const Attention& in, const PackedGate* gate)
      : segments_(in.segments),
        gate_(gate),
        gate_size_(gate ? GateGradSums::size(*gate) : 0),
        bias_(in.segments),
        weights_(gate_size_) {
    for (int64_t i = 0; i < segments_; i++) bias_[i] = 0.;
    for (int64_t i = 0; i < gate_size_; i++) weights_[i] = 0.;
  }
  int64_t gate_size() const { return gate_size_; }

  void add_bias(int64_t segment, const double* partials, int64_t count) {
    for (int64_t i = 0; i < count; i++) bias_[segment] += partials[i];
  }
  void add_gate(const double* partials, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
      for (int64_t j = 0; j < gate_size_; j++) weights_[j] += partials[i * gate_size_ + j];
    }
  }

  void write(const AttentionBackward& call) const {
    if (call.dbias) copy(bias_, segments_, call.dbias);
    if (gate_) write_gate(*gate_, call.dgate);
  }

 private:
  void write_gate(const PackedGate& g, const GateGrad& to) const {
    const GateGradSums from(g, weights_);
    copy(from.norm_weight, g.dim, to.norm_weight);
    copy(from.norm_bias, g.dim, to.norm_bias);
    for (int64_t j = 0; j < g.hidden; j++) {
      copy(from.fc1_weight + j * g.dim_padded, g.dim, to.fc1_weight + j * g.dim);
    }
    copy(from.fc1_bias, g.hidden, to.fc1_bias);
    copy(from.fc2_weight, g.hidden, to.fc2_weight);
    copy(from.fc2_bias, 1, to.fc2_bias);
  }

  static void copy(const double* from, int64_t n, float* to) {
    for (int64_t i = 0; i < n; i++) to[i] = static_cast<float>(from[i]);
  }

  int64_t segments_;
  const PackedGate* gate_;
  int64_t gate_size_;
  Buffer<double> bias_, weights_;
};

}  // namespace
}  // namespace genhoi::cpu
