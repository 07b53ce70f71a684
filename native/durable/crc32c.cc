#include "durable/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace satrap {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78u;  // reflected

using Tables = std::array<std::array<uint32_t, 256>, 8>;

// tables[k][b]: the CRC of byte b followed by k zero bytes, so eight bytes can be looked up side by side.
constexpr Tables make_tables() {
  Tables t{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t crc = b;
    for (int i = 0; i < 8; ++i) crc = (crc >> 1) ^ (crc & 1 ? kPolynomial : 0);
    t[0][b] = crc;
  }
  for (size_t k = 1; k < 8; ++k)
    for (uint32_t b = 0; b < 256; ++b) t[k][b] = (t[k - 1][b] >> 8) ^ t[0][t[k - 1][b] & 255];
  return t;
}
constexpr Tables kTables = make_tables();

#if defined(__x86_64__)
constexpr size_t kStripe = 1024;  // bytes of each of three stripes

// What as many zero bytes as `by` was made for do to a CRC before them.
uint32_t shifted(uint32_t crc, const std::array<std::array<uint32_t, 256>, 4>& by) {
  return by[0][crc & 255] ^ by[1][(crc >> 8) & 255] ^ by[2][(crc >> 16) & 255] ^ by[3][crc >> 24];
}

std::array<std::array<uint32_t, 256>, 4> make_shift(size_t bytes) {
  std::array<std::array<uint32_t, 256>, 4> out{};
  for (uint32_t k = 0; k < 4; ++k)
    for (uint32_t b = 0; b < 256; ++b) {
      uint32_t crc = b << (8 * k);
      for (size_t i = 0; i < bytes; ++i) crc = (crc >> 8) ^ kTables[0][crc & 255];
      out[k][b] = crc;
    }
  return out;
}

// The instruction takes 3 cycles and can begin one each: three stripes keep it busy.
__attribute__((target("sse4.2"))) uint32_t crc32c_sse42(uint32_t crc, const void* data, size_t size) {
  static const auto kOne = make_shift(kStripe), kTwo = make_shift(2 * kStripe);
  const char* p = static_cast<const char*>(data);
  auto word = [](const char* at) {
    uint64_t w;
    std::memcpy(&w, at, 8);
    return w;
  };
  uint64_t c = crc ^ 0xFFFFFFFFu;
  for (; size >= 3 * kStripe; size -= 3 * kStripe, p += 3 * kStripe) {
    uint64_t c1 = 0, c2 = 0;
    for (size_t i = 0; i < kStripe; i += 8) {
      c = _mm_crc32_u64(c, word(p + i));
      c1 = _mm_crc32_u64(c1, word(p + kStripe + i));
      c2 = _mm_crc32_u64(c2, word(p + 2 * kStripe + i));
    }
    c = shifted(static_cast<uint32_t>(c), kTwo) ^ shifted(static_cast<uint32_t>(c1), kOne) ^ c2;
  }
  for (; size >= 8; size -= 8, p += 8) c = _mm_crc32_u64(c, word(p));
  for (; size > 0; --size, ++p) c = _mm_crc32_u8(static_cast<uint32_t>(c), static_cast<unsigned char>(*p));
  return static_cast<uint32_t>(c) ^ 0xFFFFFFFFu;
}
#endif

}  // namespace

uint32_t crc32c_portable(uint32_t crc, const void* data, size_t size) {
  const auto* p = static_cast<const unsigned char*>(data);
  crc ^= 0xFFFFFFFFu;
  for (; size >= 8; size -= 8, p += 8) {
    const uint32_t a = crc ^ (p[0] | p[1] << 8 | p[2] << 16 | static_cast<uint32_t>(p[3]) << 24);
    crc = kTables[7][a & 255] ^ kTables[6][(a >> 8) & 255] ^ kTables[5][(a >> 16) & 255] ^
          kTables[4][a >> 24] ^ kTables[3][p[4]] ^ kTables[2][p[5]] ^ kTables[1][p[6]] ^ kTables[0][p[7]];
  }
  for (; size > 0; --size, ++p) crc = (crc >> 8) ^ kTables[0][(crc ^ *p) & 255];
  return crc ^ 0xFFFFFFFFu;
}

uint32_t crc32c(uint32_t crc, const void* data, size_t size) {
#if defined(__x86_64__)
  static const bool kInstruction = __builtin_cpu_supports("sse4.2");
  if (kInstruction) return crc32c_sse42(crc, data, size);
#endif
  return crc32c_portable(crc, data, size);
}

}  // namespace satrap
