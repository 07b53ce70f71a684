// 64-bit mixing. `mix` is a bijection, so a mixed id is the id in another order and nothing is ever merged.
#pragma once
#include <cstdint>

namespace satrap {

// Two rounds of xor-shift and multiply by an odd constant; every input bit reaches every output bit.
inline uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93ull;
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93ull;
  x ^= x >> 32;
  return x;
}

// The inverse: unmix(mix(x)) == x. The constant is the inverse of mix's modulo 2^64.
inline uint64_t unmix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xCFEE444D8B59A89Bull;
  x ^= x >> 32;
  x *= 0xCFEE444D8B59A89Bull;
  x ^= x >> 32;
  return x;
}

}  // namespace satrap
