// How values are stored, by format: decoded to fp32 and encoded, to the nearest or at random. Plain loops
// that compilers turn into vectors; the same bits on every level.
//
// Stochastic rounding (Gupta et al. 2015, arXiv 1502.02551): a value between two that the format has becomes
// the upper one with a probability of its distance from the lower one, so that what many small updates add up
// to is right on average where each of them alone would be lost.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/half.h"
#include "base/hash.h"
#include "base/lanes.h"
#include "table/spec.h"

namespace satrap {
namespace {

// The random bits of one update of one row: number j is a function of j and of what they were made from, no
// matter when, where and in which order they are drawn.
struct Draws {
  uint32_t low = 0, high = 0;
  // 32 bits, of one number or of a vector of them. A mixer of 32 bits (Wellons' lowbias32) with the second
  // half of the key between its rounds.
  template <typename Number>
  Number operator()(Number j) const {
    Number x = low + j * 0x9E3779B9u;
    x = (x ^ (x >> 16)) * 0x21F0AAADu;
    x = (x ^ (x >> 15) ^ high) * 0x735A2D97u;
    return x ^ (x >> 15);
  }
};

// h: the mixed id. The version alone would bring the same bits back every 256 updates; together with a part
// of the gradient they come back only for a row that is stuck with one gradient.
inline Draws draws_of(uint64_t table_key, uint64_t h, uint8_t version, float gradient) {
  const uint64_t step = uint64_t{version} << 32 | std::bit_cast<uint32_t>(gradient);
  const uint64_t key = mix(mix(table_key + h) + step);
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
}

typedef uint16_t __attribute__((may_alias)) StoredWord;
typedef int8_t __attribute__((may_alias)) StoredByte;

constexpr uint32_t kInfinityBits = 0x7F800000u;

// ---- fp16

// Towards infinity where it is out of range, as to the nearest.
inline uint16_t float_to_half(float f, uint32_t random) {
  const auto bits = std::bit_cast<uint32_t>(f);
  const uint32_t sign = (bits >> 16) & 0x8000u, a = bits & 0x7FFFFFFFu;
  // Normal: the 13 bits that are cut off, and a random number of as many, carry or do not.
  uint32_t normal = (a - 0x38000000u + (random & 0x1FFFu)) >> 13;
  normal = normal > 0x7C00u ? 0x7C00u : normal;
  const uint32_t small = a < 0x38800000u ? a : 0x38800000u;
  const auto fixed = static_cast<uint32_t>(static_cast<int32_t>(std::bit_cast<float>(small) * 0x1p44f));
  const uint32_t subnormal = (fixed + (random & 0xFFFFFu)) >> 20;
  const uint32_t nan = 0x7E00u | ((a >> 13) & 0x3FFu);
  const uint32_t finite = a < 0x38800000u ? subnormal : normal;
  return static_cast<uint16_t>(sign | (a > kInfinityBits ? nan : finite));
}

// ---- bf16: the upper half of an fp32

inline uint16_t float_to_bf16(float f) {
  const auto bits = std::bit_cast<uint32_t>(f);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16, nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > kInfinityBits ? nan : rounded);
}
inline uint16_t float_to_bf16(float f, uint32_t random) {
  const auto bits = std::bit_cast<uint32_t>(f);
  const uint32_t rounded = (bits + (random & 0xFFFFu)) >> 16, nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > kInfinityBits ? nan : rounded);
}

// ---- int8: a scale and codes from -127 to 127

// The scale of a row by the bits of its largest magnitude: a 127th of it, rounded up to 3 bits of mantissa
// (so at most a ninth coarser than it need be). Most updates then leave the scale as it is, and elements
// without a gradient of their own on their codes: a scale of all bits would change with every update of the
// largest element, and round every other one anew each time. 0 below 2^-112; NaN where a value is not finite.
inline float scale_of(uint32_t largest) {
  if (largest >= kInfinityBits) return std::bit_cast<float>(0x7FC00000u);
  const float exact = std::bit_cast<float>(largest) / 127.0f;
  if (exact < 0x1p-119f) return 0.0f;
  return std::bit_cast<float>((std::bit_cast<uint32_t>(exact) + 0xFFFFFu) & ~0xFFFFFu);
}

using Numbers = uint32_t __attribute__((vector_size(4 * kLanes)));

inline Numbers numbers_from(uint32_t first) {
  Numbers n;
  for (uint32_t k = 0; k < kLanes; ++k) n[k] = k;
  return n + first;
}

// To the nearest, ties to even: the sum has its unit in the last mantissa bit.
struct NearestCode {
  Words operator()(Floats x, uint32_t) const {
    constexpr float kRound = 0x1.8p23f;
    return reinterpret_cast<Words>(x + kRound) - std::bit_cast<int32_t>(kRound);
  }
};

// The random number lies between 0 and 1, both left out, and as far from one as from the other: codes keep
// exactly what is on them, and what is lost below 2^-17 of a step is lost on both sides.
struct RandomCode {
  Draws random;
  Words operator()(Floats x, uint32_t j) const {
    const Numbers bits = random(numbers_from(j)) >> 16;
    x += __builtin_convertvector(reinterpret_cast<Words>(bits), Floats) * 0x1p-16f + 0x1p-17f;
    const Words cut = __builtin_convertvector(x, Words);
    return cut + reinterpret_cast<Words>(x < __builtin_convertvector(cut, Floats));  // true is -1
  }
};

// In vectors by hand: as loops, narrowing to bytes was compiled to one element at a time.
template <typename Code>
inline void encode_codes(const float* __restrict in, char* __restrict out, uint32_t dim, Code code) {
  const auto full = static_cast<uint32_t>(whole(dim));
  Floats rest = {};  // what fills no register, and zeros
  if (full != dim) std::memcpy(&rest, in + full, 4 * size_t{dim - full});
  Words most = magnitudes(rest);
  for (uint32_t j = 0; j < full; j += kLanes) most = larger(most, magnitudes(load(in + j)));
  const float scale = scale_of(static_cast<uint32_t>(largest_of(most)));
  std::memcpy(out, &scale, 4);
  out += 4;
  if (!(scale > 0.0f)) {  // zeros, or NaN for all
    std::memset(out, 0, dim);
    return;
  }
  auto codes = [&](Floats x, uint32_t j) {
    const Words c = code(x / scale, j), most_code = Words{} + 127;
    return larger(c < most_code ? c : most_code, -most_code);
  };
  for (uint32_t j = 0; j < full; j += kLanes) store_bytes(out + j, codes(load(in + j), j));
  if (full == dim) return;
  char bytes[kLanes];
  store_bytes(bytes, codes(rest, full));
  std::memcpy(out + full, bytes, dim - full);
}

// ---- all formats

template <ValueFormat kFormat>
inline void decode_values(const char* __restrict in, float* __restrict out, uint32_t dim) {
  if constexpr (kFormat == ValueFormat::kFp32) std::memcpy(out, in, 4 * size_t{dim});
  if constexpr (kFormat == ValueFormat::kFp16) decode_half(in, out, dim);
  if constexpr (kFormat == ValueFormat::kBf16) {
    const auto* words = reinterpret_cast<const StoredWord*>(in);
    for (uint32_t j = 0; j < dim; ++j) out[j] = std::bit_cast<float>(uint32_t{words[j]} << 16);
  }
  if constexpr (kFormat == ValueFormat::kInt8) {
    float scale;
    std::memcpy(&scale, in, 4);
    const auto* codes = reinterpret_cast<const StoredByte*>(in + 4);
    for (uint32_t j = 0; j < dim; ++j) out[j] = static_cast<float>(int32_t{codes[j]}) * scale;
  }
}

// To the nearest, ties to even.
template <ValueFormat kFormat>
inline void encode_values(const float* __restrict in, char* __restrict out, uint32_t dim) {
  if constexpr (kFormat == ValueFormat::kFp32) std::memcpy(out, in, 4 * size_t{dim});
  if constexpr (kFormat == ValueFormat::kFp16) encode_half(in, out, dim);
  if constexpr (kFormat == ValueFormat::kBf16) {
    auto* words = reinterpret_cast<StoredWord*>(out);
    for (uint32_t j = 0; j < dim; ++j) words[j] = float_to_bf16(in[j]);
  }
  if constexpr (kFormat == ValueFormat::kInt8) encode_codes(in, out, dim, NearestCode());
}

// At random. What the format has is left as it is.
template <ValueFormat kFormat>
inline void encode_values(const float* __restrict in, char* __restrict out, uint32_t dim, Draws random) {
  if constexpr (kFormat == ValueFormat::kFp32) std::memcpy(out, in, 4 * size_t{dim});
  if constexpr (kFormat == ValueFormat::kFp16) {
    auto* words = reinterpret_cast<StoredWord*>(out);
    for (uint32_t j = 0; j < dim; ++j) words[j] = float_to_half(in[j], random(j));
  }
  if constexpr (kFormat == ValueFormat::kBf16) {
    auto* words = reinterpret_cast<StoredWord*>(out);
    for (uint32_t j = 0; j < dim; ++j) words[j] = float_to_bf16(in[j], random(j));
  }
  if constexpr (kFormat == ValueFormat::kInt8) encode_codes(in, out, dim, RandomCode{random});
}

}  // namespace
}  // namespace satrap
