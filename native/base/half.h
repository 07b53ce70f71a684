// Half precision, by the processor's instruction where a build may use it: the same bits either way.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace satrap {
namespace {

inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t{h & 0x8000u} << 16, exponent = (h >> 10) & 31, mantissa = h & 1023u;
  if (exponent == 31)  // a NaN becomes a quiet one, as by the F16C instruction
    return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13) | (mantissa != 0 ? 0x400000u : 0u));
  if (exponent == 0) {  // zero or subnormal: the mantissa times 2^-24, exact in fp32
    float v = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(v) | sign);
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// Round to nearest, ties to even, as the F16C instruction does.
inline uint16_t float_to_half(float f) {
  const auto bits = std::bit_cast<uint32_t>(f);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t a = bits & 0x7FFFFFFFu;
  if (a > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u | ((a >> 13) & 0x3FFu));
  if (a >= 0x477FF000u) return sign | 0x7C00u;  // 65520 and above
  if (a < 0x38800000u) {                        // below the smallest normal: adding 0.5 aligns the mantissa
    float v = std::bit_cast<float>(a) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(v) - 0x3F000000u));
  }
  const uint32_t odd = (a >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((a - 0x38000000u + 0xFFFu + odd) >> 13));
}

inline void decode_half(const char* in, float* out, uint32_t dim) {
  uint32_t j = 0;
#if defined(__F16C__)
  for (; j + 8 <= dim; j += 8)
    _mm256_storeu_ps(out + j,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 2 * size_t{j}))));
#endif
  for (; j < dim; ++j) {
    uint16_t h;
    std::memcpy(&h, in + 2 * size_t{j}, 2);
    out[j] = half_to_float(h);
  }
}

inline void encode_half(const float* in, char* out, uint32_t dim) {
  uint32_t j = 0;
#if defined(__F16C__)
  for (; j + 8 <= dim; j += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * size_t{j}),
                     _mm256_cvtps_ph(_mm256_loadu_ps(in + j), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; j < dim; ++j) {
    uint16_t h = float_to_half(in[j]);
    std::memcpy(out + 2 * size_t{j}, &h, 2);
  }
}

}  // namespace
}  // namespace satrap
