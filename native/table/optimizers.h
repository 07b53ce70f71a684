// One optimizer step of one row, in fp32, element by element. `w` values, `s` state, `g` gradient, all of
// length D. The same formulas as torch.optim, or the paper that defines the optimizer; see
// satrap.schema.optimizers.
#pragma once
#include <cmath>
#include <cstring>

#include "table/view.h"

namespace satrap {
namespace {

template <int N>
struct Lanes {
  typedef float Vector __attribute__((vector_size(4 * N)));
};

// Sum of (g + decay w)^2 over sixteen lanes in a fixed order: the same bits whatever the vector width of the
// build. Written with vectors because the loops it stands for were compiled to one addition at a time.
inline float sum_of_squares(const float* g, const float* w, float decay, uint32_t dim) {
  // Two halves of eight lanes: where a build has no wider registers they stay in registers.
  using Half = typename Lanes<8>::Vector;
  Half low = {}, high = {}, gradient, weight;
  const uint32_t whole = dim & ~15u;
  for (uint32_t j = 0; j < whole; j += 16) {
    std::memcpy(&gradient, g + j, 32);
    std::memcpy(&weight, w + j, 32);
    const Half d = gradient + decay * weight;
    low += d * d;
    std::memcpy(&gradient, g + j + 8, 32);
    std::memcpy(&weight, w + j + 8, 32);
    const Half e = gradient + decay * weight;
    high += e * e;
  }
  if (whole != dim) {
    alignas(64) float lane[16];
    std::memcpy(lane, &low, 32);
    std::memcpy(lane + 8, &high, 32);
    for (uint32_t j = whole; j < dim; ++j) {
      const float d = g[j] + decay * w[j];
      lane[j & 15] += d * d;
    }
    std::memcpy(&low, lane, 32);
    std::memcpy(&high, lane + 8, 32);
  }
  low += high;
  const auto four =
      __builtin_shufflevector(low, low, 0, 1, 2, 3) + __builtin_shufflevector(low, low, 4, 5, 6, 7);
  const auto two = four + __builtin_shufflevector(four, four, 2, 3, 2, 3);
  return two[0] + two[1];
}

inline void sgd(const OptimizerSpec& o, float lr, float* __restrict w, float* __restrict s,
                const float* __restrict g, uint32_t dim) {
  if (o.momentum > 0) {
    for (uint32_t j = 0; j < dim; ++j) {
      s[j] = o.momentum * s[j] + (g[j] + o.weight_decay * w[j]);
      w[j] -= lr * s[j];
    }
  } else {
    for (uint32_t j = 0; j < dim; ++j) w[j] -= lr * (g[j] + o.weight_decay * w[j]);
  }
}

inline void adagrad(const OptimizerSpec& o, float lr, float* __restrict w, float* __restrict s,
                    const float* __restrict g, uint32_t dim) {
  for (uint32_t j = 0; j < dim; ++j) {
    float d = g[j] + o.weight_decay * w[j];
    s[j] += d * d;
    w[j] -= lr * d / (std::sqrt(s[j]) + o.eps);
  }
}

inline void rowwise_adagrad(const OptimizerSpec& o, float lr, float* __restrict w, float* __restrict s,
                            const float* __restrict g, uint32_t dim) {
  s[0] += sum_of_squares(g, w, o.weight_decay, dim) / static_cast<float>(dim);
  const float step = lr / (std::sqrt(s[0]) + o.eps);
  for (uint32_t j = 0; j < dim; ++j) w[j] -= step * (g[j] + o.weight_decay * w[j]);
}

// What one step of a row, its step number t, has in common for all its elements.
struct AdamStep {
  float step, root, keep, decay, beta1, beta2, eps;
  AdamStep(const OptimizerSpec& o, float lr, const float* bias, float t)
      : beta1(o.beta1), beta2(o.beta2), eps(o.eps) {
    float bias1, bias2;
    // A count that came back from a file may be anything; only what the table holds is looked up in it.
    if (t >= 0.0f && t < static_cast<float>(kBiasSteps)) {
      bias1 = bias[2 * static_cast<size_t>(t)];
      bias2 = bias[2 * static_cast<size_t>(t) + 1];
    } else {
      bias1 = static_cast<float>(1.0 - std::pow(static_cast<double>(o.beta1), static_cast<double>(t)));
      bias2 = static_cast<float>(1.0 - std::pow(static_cast<double>(o.beta2), static_cast<double>(t)));
    }
    step = lr / bias1;
    root = std::sqrt(bias2);
    const bool decoupled = o.kind == OptimizerKind::kAdamW;
    keep = decoupled ? 1.0f - lr * o.weight_decay : 1.0f;
    decay = decoupled ? 0.0f : o.weight_decay;
  }
  void run(float* __restrict w, float* __restrict m, float* __restrict v, const float* __restrict g,
           uint32_t n) const {
    const AdamStep a = *this;
    for (uint32_t j = 0; j < n; ++j) {
      float p = w[j] * a.keep;
      float d = g[j] + a.decay * p;
      m[j] = m[j] + (1.0f - a.beta1) * (d - m[j]);
      v[j] = a.beta2 * v[j] + (1.0f - a.beta2) * d * d;
      w[j] = p - a.step * (m[j] / (std::sqrt(v[j]) / a.root + a.eps));
    }
  }
};

inline void adam(const OptimizerSpec& o, float lr, const float* bias, float* __restrict w,
                 float* __restrict s, const float* __restrict g, uint32_t dim) {
  const float t = (s[2 * dim] += 1.0f);
  AdamStep(o, lr, bias, t).run(w, s, s + dim, g, dim);
}

inline void ftrl(const OptimizerSpec& o, float lr, float* __restrict w, float* __restrict s,
                 const float* __restrict g, uint32_t dim) {
  float* __restrict z = s;
  float* __restrict n = s + dim;
  if (lr == 0.0f) return;  // the end of a schedule: no step, and no division by it
  // The paper's sigmas add up to the inverse rate, (beta + sqrt n) / lr. Where a schedule has changed lr
  // since the row's last step, sigma takes up that change too; without it the closed form would scale the row
  // by lr's factor.
  const float changed = lr == s[2 * dim] ? 0.0f : 1.0f / lr - 1.0f / s[2 * dim];
  s[2 * dim] = lr;
  for (uint32_t j = 0; j < dim; ++j) {
    float grown = n[j] + g[j] * g[j];
    float sigma = (std::sqrt(grown) - std::sqrt(n[j])) / lr + (o.ftrl_beta + std::sqrt(n[j])) * changed;
    z[j] += g[j] - sigma * w[j];
    n[j] = grown;
    float shrunk = z[j] > o.l1 ? z[j] - o.l1 : (z[j] < -o.l1 ? z[j] + o.l1 : 0.0f);
    w[j] = -shrunk / ((o.ftrl_beta + std::sqrt(grown)) / lr + o.l2);
  }
}

inline void initial_state(const OptimizerSpec& o, const float* w, float* s, uint32_t dim) {
  const uint32_t n = state_floats(o, dim);
  const bool adagrad_like = o.kind == OptimizerKind::kAdagrad || o.kind == OptimizerKind::kRowWiseAdagrad;
  for (uint32_t j = 0; j < n; ++j) s[j] = adagrad_like ? o.initial_accumulator : 0.0f;
  if (o.kind != OptimizerKind::kFtrl) return;
  // The z for which the closed form gives the row's first values; zero, as in the paper, where they are zero.
  for (uint32_t j = 0; j < dim; ++j) {
    float sign = w[j] > 0 ? 1.0f : (w[j] < 0 ? -1.0f : 0.0f);
    s[j] = -w[j] * (o.ftrl_beta / o.lr + o.l2) - sign * o.l1;
  }
  s[2 * dim] = o.lr;
}

}  // namespace
}  // namespace satrap
