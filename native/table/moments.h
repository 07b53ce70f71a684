// Adam's moments in 8 bits, with scales a block: the idea of Dettmers et al. 2022 (8-bit Optimizers via
// Block-wise Quantization, arXiv 2110.02861). Instead of their table of 256 values a code is a small float:
// 3 bits of mantissa, and an exponent counted from that of the block's largest element. So codes cost no
// table and no division, and a block's scale changes only when its largest element passes a power of two
// over 8.
//
// Codes are rounded at random. To the nearest, a second moment would stand still: one step with beta2 = 0.999
// changes it by a thousandth, a code by an eighth.
//
//   state   steps f32 | a word a block: base of m (u16), base of v (u16) | codes of m [D] | codes of v [D]
//   v       code c stands for the float with the bits (base + c) << 20; 0 for 0
//   m       likewise with 7 bits; the 8th is the sign
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "table/formats.h"
#include "table/optimizers.h"

namespace satrap {
namespace {

struct Moments {
  float* steps;
  StoredWord* bases;  // 2 a block
  char* m;
  char* v;
  Moments(float* state, uint32_t dim)
      : steps(state),
        bases(reinterpret_cast<StoredWord*>(state + 1)),
        m(reinterpret_cast<char*>(state + 1 + (dim + kMomentBlock - 1) / kMomentBlock)),
        v(m + dim) {}
};

constexpr uint32_t kCodeShift = 20;
static_assert(kMomentBlock % kLanes == 0);

// One moment of a block. Elements behind the block's n are zeros, so that registers are always full.
struct alignas(64) Block {
  float of[kMomentBlock];
};

// Calls each(codes, first element) for each register of a block of n codes; the last one may be a copy, which
// is copied back where codes are written.
template <typename Code, typename Each>
inline void by_registers(Code* codes, uint32_t n, Each&& each) {
  const auto full = static_cast<uint32_t>(whole(n));
  for (uint32_t j = 0; j < full; j += kLanes) each(codes + j, j);
  if (full == n) return;
  char rest[kLanes] = {};
  std::memcpy(rest, codes + full, n - full);
  each(rest, full);
  if constexpr (!std::is_const_v<Code>) std::memcpy(codes + full, rest, n - full);
}

template <uint32_t kCodes>  // 127: with a sign; 255: without
inline void decode_moment(const char* codes, uint32_t base, uint32_t n, Block& block) {
  by_registers(codes, n, [&](const char* from, uint32_t j) {
    const Words c = load_words(from), size = c & int32_t{kCodes};
    const Numbers bits = (reinterpret_cast<Numbers>(size) + base) << kCodeShift;
    Words out = size == 0 ? Words{} : reinterpret_cast<Words>(bits);
    if constexpr (kCodes == 127) out |= reinterpret_cast<Words>(reinterpret_cast<Numbers>(c & 128) << 24);
    store(block.of + j, out);
  });
}

// `round`: a number below 2^20 for each element, which carries the bits that are cut off or does not. Returns
// the base. A second moment above 0 never becomes 0, which would divide by nothing but eps; a first moment
// below the least code becomes that or 0, by chance.
template <uint32_t kCodes, typename Round>
inline uint16_t encode_moment(const Block& block, char* codes, uint32_t n, Round&& round) {
  constexpr int32_t kLargest = 0x7F7FFFFF;  // of finite numbers
  Words most = {};
  for (uint32_t j = 0; j < n; j += kLanes) most = larger(most, magnitudes(load(block.of + j)));
  // The largest one has the last code but one, so that it can be rounded up.
  const int32_t top = std::min(largest_of(most), kLargest) >> kCodeShift;
  const int32_t base = std::max(0, top + 1 - int32_t{kCodes}), limit = (base + 1) << kCodeShift;
  const float least = std::bit_cast<float>(limit);
  by_registers(codes, n, [&](char* to, uint32_t j) {
    const Floats value = load(block.of + j);
    Words a = magnitudes(value);
    a = a < kLargest ? a : Words{} + kLargest;
    const Words r = round(j);
    Words code = ((a + r) >> kCodeShift) - base;
    const Floats x = reinterpret_cast<Floats>(a);
    Words under = reinterpret_cast<Words>(x > 0.0f);
    if constexpr (kCodes == 127)
      under = reinterpret_cast<Words>(x > __builtin_convertvector(0xFFFFF - r, Floats) * 0x1p-20f * least);
    code = a < limit ? under & 1 : code;
    code = code < int32_t{kCodes} ? code : Words{} + int32_t{kCodes};
    if constexpr (kCodes == 127)
      code |= reinterpret_cast<Words>(reinterpret_cast<Numbers>(value) >> 24 & 128u);
    // As bytes from -128 to 127, which are the same bits.
    store_bytes(to, reinterpret_cast<Words>(reinterpret_cast<Numbers>(code) << 24) >> 24);
  });
  return static_cast<uint16_t>(base);
}

// fp32 state [2 D + 1] of Adam to that of 8 bits, to the nearest, and back.
inline void pack_moments(const float* full, float* state, uint32_t dim) {
  const Moments to(state, dim);
  std::fill_n(state, 1 + (dim + kMomentBlock - 1) / kMomentBlock + (2 * dim + 3) / 4, 0.0f);
  *to.steps = full[2 * dim];
  const auto half_way = [](uint32_t) { return Words{} + 0x80000; };
  for (uint32_t b = 0, at = 0; at < dim; ++b, at += kMomentBlock) {
    const uint32_t n = std::min(kMomentBlock, dim - at);
    Block m{}, v{};
    std::memcpy(m.of, full + at, 4 * size_t{n});
    std::memcpy(v.of, full + dim + at, 4 * size_t{n});
    to.bases[2 * b] = encode_moment<127>(m, to.m + at, n, half_way);
    to.bases[2 * b + 1] = encode_moment<255>(v, to.v + at, n, half_way);
  }
}
inline void unpack_moments(const float* state, float* full, uint32_t dim) {
  const Moments from(const_cast<float*>(state), dim);  // only read
  full[2 * dim] = *from.steps;
  for (uint32_t b = 0, at = 0; at < dim; ++b, at += kMomentBlock) {
    const uint32_t n = std::min(kMomentBlock, dim - at);
    Block m, v;
    decode_moment<127>(from.m + at, from.bases[2 * b], n, m);
    decode_moment<255>(from.v + at, from.bases[2 * b + 1], n, v);
    std::memcpy(full + at, m.of, 4 * size_t{n});
    std::memcpy(full + dim + at, v.of, 4 * size_t{n});
  }
}

// A step of Adam or AdamW on such a state. Draws from `random` behind those of the values.
__attribute__((noinline)) inline void adam_in_blocks(const OptimizerSpec& o, float lr, const float* bias,
                                                     float* w, float* state, const float* g, uint32_t dim,
                                                     Draws random) {
  const Moments s(state, dim);
  const AdamStep step(o, lr, bias, *s.steps += 1.0f);
  auto draws = [&](uint32_t first) {
    return [random, first](uint32_t j) {
      return reinterpret_cast<Words>(random(numbers_from(first + j)) >> 12);
    };
  };
  Block m, v;
  for (uint32_t b = 0, at = 0; at < dim; ++b, at += kMomentBlock) {
    const uint32_t n = std::min(kMomentBlock, dim - at);
    decode_moment<127>(s.m + at, s.bases[2 * b], n, m);
    decode_moment<255>(s.v + at, s.bases[2 * b + 1], n, v);
    step.run(w + at, m.of, v.of, g + at, n);
    s.bases[2 * b] = encode_moment<127>(m, s.m + at, n, draws(kMaxDim + at));
    s.bases[2 * b + 1] = encode_moment<255>(v, s.v + at, n, draws(2 * kMaxDim + at));
  }
}

}  // namespace
}  // namespace satrap
