// First values of a row: a pure function of (table key, id), the same bits on every machine and in every
// build.
//
// Counter-based: number j of a row is mix-derived from (key, id, j), so values do not depend on when or where
// a row is made. Only exactly rounded operations (+ - * / sqrt) are used; the logarithm is our own for that
// reason.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "base/hash.h"
#include "table/spec.h"

namespace satrap {
namespace {

inline uint64_t row_key(uint64_t table_key, uint64_t id) { return mix(table_key + mix(id)); }

// splitmix64 (Steele, Lea, Flood 2014) at counter j.
inline uint64_t draw(uint64_t key, uint64_t j) {
  uint64_t z = key + (j + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// Natural logarithm of a positive normal number: ln m + e ln 2 with m in [sqrt 1/2, sqrt 2), by the series of
// atanh.
inline double exact_log(double x) {
  auto bits = std::bit_cast<uint64_t>(x);
  auto e = static_cast<int64_t>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0xFFFFFFFFFFFFFull) | 0x3FF0000000000000ull);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++e;
  }
  double s = (m - 1.0) / (m + 1.0), s2 = s * s, sum = 0.0;
  for (int k = 21; k >= 1; k -= 2) sum = sum * s2 + 1.0 / k;
  return 2.0 * s * sum + static_cast<double>(e) * 0.6931471805599453;
}

// The quantile of the standard normal distribution (Wichura 1988, algorithm AS 241, PPND16), p in (0, 1).
inline double normal_quantile(double p) {
  static constexpr double a[8] = {3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3,
                                  1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
                                  3.3430575583588128105e4, 2.5090809287301226727e3};
  static constexpr double b[8] = {1.0,
                                  4.2313330701600911252e1,
                                  6.8718700749205790830e2,
                                  5.3941960214247511077e3,
                                  2.1213794301586595867e4,
                                  3.9307895800092710610e4,
                                  2.8729085735721942674e4,
                                  5.2264952788528545610e3};
  static constexpr double c[8] = {1.42343711074968357734e0,  4.63033784615654529590e0,
                                  5.76949722146069140550e0,  3.64784832476320460504e0,
                                  1.27045825245236838258e0,  2.41780725177450611770e-1,
                                  2.27238449892691845833e-2, 7.74545014278341407640e-4};
  static constexpr double d[8] = {1.0,
                                  2.05319162663775882187e0,
                                  1.67638483018380384940e0,
                                  6.89767334985100004550e-1,
                                  1.48103976427480074590e-1,
                                  1.51986665636164571966e-2,
                                  5.47593808499534494600e-4,
                                  1.05075007164441684324e-9};
  static constexpr double e[8] = {6.65790464350110377720e0,  5.46378491116411436990e0,
                                  1.78482653991729133580e0,  2.96560571828504891230e-1,
                                  2.65321895265761230930e-2, 1.24266094738807843860e-3,
                                  2.71155556874348757815e-5, 2.01033439929228813265e-7};
  static constexpr double f[8] = {1.0,
                                  5.99832206555887937690e-1,
                                  1.36929880922735805310e-1,
                                  1.48753612908506148525e-2,
                                  7.86869131145613259100e-4,
                                  1.84631831751005468180e-5,
                                  1.42151175831644588870e-7,
                                  2.04426310338993978564e-15};
  auto ratio = [](const double* n, const double* m, double r) {
    double x = n[7], y = m[7];
    for (int i = 6; i >= 0; --i) {
      x = x * r + n[i];
      y = y * r + m[i];
    }
    return x / y;
  };
  double q = p - 0.5;
  if (q >= -0.425 && q <= 0.425) return q * ratio(a, b, 0.180625 - q * q);
  double r = std::sqrt(-exact_log(q < 0 ? p : 1.0 - p));
  double x = r <= 5.0 ? ratio(c, d, r - 1.6) : ratio(e, f, r - 5.0);
  return q < 0 ? -x : x;
}

inline void initial_values(const InitializerSpec& s, uint64_t key, float* out, uint32_t dim) {
  switch (s.kind) {
    case InitializerKind::kUniform: {
      // Two numbers of 24 bits from each draw: exact in fp32.
      const float scale = (s.b - s.a) * 0x1p-24f;
      uint32_t j = 0;
      for (; j + 2 <= dim; j += 2) {
        const uint64_t z = draw(key, j / 2);
        out[j] = s.a + scale * static_cast<float>(static_cast<int32_t>(z >> 40));
        out[j + 1] = s.a + scale * static_cast<float>(static_cast<int32_t>((z >> 8) & 0xFFFFFF));
      }
      if (j < dim) out[j] = s.a + scale * static_cast<float>(static_cast<int32_t>(draw(key, j / 2) >> 40));
      return;
    }
    case InitializerKind::kNormal:
    case InitializerKind::kTruncatedNormal: {
      // Truncation at two standard deviations: the quantile of a number in [Phi(-2), Phi(2)], so nothing is
      // redrawn.
      constexpr double kLow = 0.022750131948179207;
      const bool cut = s.kind == InitializerKind::kTruncatedNormal;
      for (uint32_t j = 0; j < dim; ++j) {
        double u = (static_cast<double>(draw(key, j) >> 11) + 0.5) * 0x1p-53;
        if (cut) u = kLow + (1.0 - 2.0 * kLow) * u;
        out[j] = static_cast<float>(static_cast<double>(s.a) + static_cast<double>(s.b) * normal_quantile(u));
      }
      return;
    }
    case InitializerKind::kConstant:
      for (uint32_t j = 0; j < dim; ++j) out[j] = s.a;
      return;
  }
}

}  // namespace
}  // namespace satrap
