// As many elements at a time as a register of the build holds. Nothing here depends on how many: each element
// is computed on its own, and the largest of integers is the same in any order.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace satrap {
namespace {

#if defined(__AVX512F__)
constexpr size_t kLanes = 16;
#elif defined(__AVX2__)
constexpr size_t kLanes = 8;
#else
constexpr size_t kLanes = 4;
#endif
using Floats = float __attribute__((vector_size(4 * kLanes)));
using Words = int32_t __attribute__((vector_size(4 * kLanes)));

constexpr int32_t kInfinity = 0x7F800000;
constexpr int32_t kMagnitude = 0x7FFFFFFF;

// Elements of n that fill registers.
constexpr size_t whole(size_t n) { return n & ~(kLanes - 1); }

// From and to any address.
inline Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
template <typename V>
inline void store(void* to, const V& v) {
  std::memcpy(to, &v, sizeof v);
}

// Magnitudes compare as their bits do.
inline Words magnitudes(Floats x) { return reinterpret_cast<Words>(x) & kMagnitude; }
inline int32_t magnitude(float x) { return std::bit_cast<int32_t>(x) & kMagnitude; }

inline Words larger(Words a, Words b) { return a > b ? a : b; }

// By halves: each step leaves the largest of twice as many elements in the first ones.
inline int32_t largest_of(Words w) {
#if defined(__AVX512F__)
  w = larger(w, __builtin_shufflevector(w, w, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  w = larger(w, __builtin_shufflevector(w, w, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  w = larger(w, __builtin_shufflevector(w, w, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
#elif defined(__AVX2__)
  w = larger(w, __builtin_shufflevector(w, w, 4, 5, 6, 7, 0, 1, 2, 3));
  w = larger(w, __builtin_shufflevector(w, w, 2, 3, 0, 1, 6, 7, 4, 5));
#else
  w = larger(w, __builtin_shufflevector(w, w, 2, 3, 0, 1));
#endif
  return w[0] > w[1] ? w[0] : w[1];
}

// Integers of -128 to 127 as bytes.
inline void store_bytes(char* to, Words w) {
#if defined(__AVX512F__)
  store(to, _mm512_maskz_cvtepi32_epi8(0xFFFF, reinterpret_cast<__m512i>(w)));
#elif defined(__AVX2__)
  const auto both = reinterpret_cast<__m256i>(w);
  const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(shorts, shorts));
#else
  for (size_t k = 0; k < kLanes; ++k) to[k] = static_cast<char>(w[k]);
#endif
}

// Bytes from 0 to 255 as integers.
inline Words load_words(const char* from) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<Words>(_mm512_maskz_cvtepu8_epi32(0xFFFF, bytes));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<Words>(_mm256_cvtepu8_epi32(bytes));
#else
  Words w;
  for (size_t k = 0; k < kLanes; ++k) w[k] = static_cast<uint8_t>(from[k]);
  return w;
#endif
}

// Bytes as floats.
inline Floats load_bytes(const char* from) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<Floats>(
      _mm512_maskz_cvtepi32_ps(0xFFFF, _mm512_maskz_cvtepi8_epi32(0xFFFF, bytes)));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<Floats>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
#else
  Floats x;
  for (size_t k = 0; k < kLanes; ++k) x[k] = static_cast<float>(static_cast<int8_t>(from[k]));
  return x;
#endif
}

}  // namespace
}  // namespace satrap
