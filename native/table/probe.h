// Finding a row: from id to chunk to row number to row memory. Inlined into every kernel build.
#pragma once
#include <cstring>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "base/hash.h"
#include "table/view.h"

namespace satrap {
namespace {

constexpr uint32_t kNoRow = 0xFFFFFFFFu;

inline const PartitionView& partition_of(const TableView& t, uint64_t h) {
  return t.partitions[t.partition_bits == 0 ? 0 : h >> (64 - t.partition_bits)];
}

// Home chunk: the 32 bits of h below the partition's, scaled to the number of chunks. Monotone in h.
inline uint32_t home_chunk(uint64_t h, int partition_bits, uint32_t chunks) {
  return static_cast<uint32_t>((((h << partition_bits) >> 32) * chunks) >> 32);
}

inline Chunk* chunk_at(const PartitionView& p, uint32_t c) {
  return reinterpret_cast<Chunk*>(p.chunk_blocks[c >> kChunkShift]) + (c & ((1u << kChunkShift) - 1));
}

inline char* row_at(const TableView& t, const PartitionView& p, uint32_t row) {
  return p.row_blocks[row >> t.row_shift] + size_t{row & ((1u << t.row_shift) - 1)} * t.layout.stride;
}

inline uint64_t load_header(const char* row) {
  uint64_t v;
  std::memcpy(&v, row, 8);
  return v;
}

inline uint32_t match_tags(const Chunk& c, uint8_t tag) {
#if defined(__SSE2__)
  // Reads the four bytes behind the tags too; the mask drops them.
  __m128i t = _mm_load_si128(reinterpret_cast<const __m128i*>(c.tag));
  uint32_t m =
      static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(t, _mm_set1_epi8(static_cast<char>(tag)))));
#else
  uint32_t m = 0;
  for (int i = 0; i < Chunk::kSlots; ++i) m |= static_cast<uint32_t>(c.tag[i] == tag) << i;
#endif
  return m & c.occupied;
}

// Whether a row is that of mixed id h, given that its tag matched. Reads all of the header but the version,
// which another thread of the same push may be writing.
inline bool same_id(const char* row, uint64_t h) {
  uint32_t low, high;  // bytes 1 to 4 and 4 to 7
  std::memcpy(&low, row + 1, 4);
  std::memcpy(&high, row + 4, 4);
  return low == static_cast<uint32_t>(h >> 8) && high == static_cast<uint32_t>(h >> 32);
}

// The row of mixed id h, or null. The plain search that the pipelines fall back to.
inline char* find_row(const TableView& t, const PartitionView& p, uint64_t h, uint32_t* number = nullptr) {
  if (p.chunks == 0) return nullptr;
  uint32_t home = home_chunk(h, t.partition_bits, p.chunks), c = home;
  do {
    const Chunk& chunk = *chunk_at(p, c);
    for (uint32_t m = match_tags(chunk, static_cast<uint8_t>(h)); m; m &= m - 1) {
      char* row = row_at(t, p, chunk.row[__builtin_ctz(m)]);
      if (!same_id(row, h)) continue;
      if (number != nullptr) *number = chunk.row[__builtin_ctz(m)];
      return row;
    }
    if (chunk.overflow == 0) return nullptr;
    if (++c == p.chunks) c = 0;
  } while (c != home);
  return nullptr;
}

}  // namespace
}  // namespace satrap
