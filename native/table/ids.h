// Ids to rows of tables of fixed size. Pure functions of the id and the table's key.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/hash.h"

namespace satrap {

// A number below n for an id, each about as often; another one for each key.
inline uint64_t hash_below(uint64_t id, uint64_t key, uint64_t n) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(mix(id ^ key)) * n) >> 64);
}

// Hashed: k of `rows` rows an id, out[i * k + j].
inline void hash_ids(const uint64_t* ids, size_t n, uint64_t key, uint64_t rows, uint32_t k, uint64_t* out) {
  for (uint32_t j = 0; j < k; ++j) {
    const uint64_t own = mix(key + j);
    for (size_t i = 0; i < n; ++i) out[i * k + j] = hash_below(ids[i], own, rows);
  }
}

// Quotient and remainder: an id becomes a number below rows * rows, of which the remainder is a row, and the
// quotient one of as many rows behind them. No two numbers have both in common.
inline void split_ids(const uint64_t* ids, size_t n, uint64_t key, uint64_t rows, uint64_t* out) {
  const uint64_t own = mix(key);
  for (size_t i = 0; i < n; ++i) {
    const uint64_t x = hash_below(ids[i], own, rows * rows);
    out[2 * i] = x % rows;
    out[2 * i + 1] = rows + x / rows;
  }
}

}  // namespace satrap
