// Finding a row: from id to chunk to row number to row memory. Inlined into every kernel build.
#pragma once
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "base/hash.h"
#include "table/stash.h"
#include "table/view.h"

namespace satrap {
namespace {

inline const PartitionView& partition_of(const TableView& t, uint64_t h) {
  return t.partitions[t.partition_bits == 0 ? 0 : h >> (64 - t.partition_bits)];
}

// Home chunk: the 32 bits of h below the partition's, scaled to the number of chunks. Monotone in h.
inline uint32_t home_chunk(uint64_t h, int partition_bits, uint32_t chunks) {
  return static_cast<uint32_t>((((h << partition_bits) >> 32) * chunks) >> 32);
}

// Bits of an entry that hold a row number. The ids of one home chunk span at most 2^(64 - number_bits)
// consecutive mixed ids, so the other bits tell them apart.
inline int number_bits_of(uint32_t chunks, int partition_bits) {
  return partition_bits + (31 - __builtin_clz(chunks));
}

// The mixed id of an entry found in the partition and with the home given: the one that ends in the entry's
// bits, counted from the first that has this home.
inline uint64_t mixed_id(uint64_t entry, uint32_t home, uint32_t partition, int partition_bits,
                         uint32_t chunks) {
  const int number_bits = number_bits_of(chunks, partition_bits);
  const uint64_t top = ((uint64_t{home} << 32) + chunks - 1) / chunks;  // of the 32 bits that choose the home
  const uint64_t above = partition_bits == 0 ? 0 : uint64_t{partition} << (64 - partition_bits);
  const uint64_t first = above | (top << (32 - partition_bits));
  const uint64_t rest = number_bits == 0 ? entry : entry >> number_bits;
  return first + ((rest - first) & (~uint64_t{0} >> number_bits));
}

// The k-th chunk to look into, k = 0 to 15, as an offset from the home: 0 first, all of 0 to 15 in an order
// of the id's own. Chunk::kFree stands for a place that is left out.
inline uint32_t probe_offset(uint64_t h, uint32_t k) {
  return (k * (2 * (static_cast<uint32_t>(h) & 7) + 1)) & 15;
}

inline uint32_t chunk_behind(uint32_t home, uint32_t offset, uint32_t chunks) {
  const uint64_t c = uint64_t{home} + offset;
  return static_cast<uint32_t>(c < chunks ? c : c % chunks);
}

inline Chunk* chunk_at(const PartitionView& p, uint32_t c) {
  return reinterpret_cast<Chunk*>(p.chunk_blocks[c >> kChunkShift]) + (c & ((1u << kChunkShift) - 1));
}

inline char* values_at(const TableView& t, const PartitionView& p, uint32_t number) {
  return p.value_blocks[number >> t.value_shift] +
         size_t{number & ((1u << t.value_shift) - 1)} * t.layout.value_stride;
}

inline Row row_at(const TableView& t, const PartitionView& p, uint32_t number) {
  const RowLayout& l = t.layout;
  char* values = values_at(t, p, number);
  if (l.together)
    return {values, reinterpret_cast<float*>(values + l.state_offset),
            reinterpret_cast<uint8_t*>(values + l.version_offset)};
  uint32_t record = number, within = 0;
  if (t.group_inverse != 0) {
    record = static_cast<uint32_t>((static_cast<unsigned __int128>(t.group_inverse) * number) >> 64);
    within = number - record * l.group;
  }
  char* side =
      p.side_blocks[record >> t.side_shift] + size_t{record & ((1u << t.side_shift) - 1)} * l.record_bytes;
  return {values, reinterpret_cast<float*>(side + size_t{within} * l.state_bytes()),
          reinterpret_cast<uint8_t*>(side + l.version_offset + within)};
}

// The first mark of a row of a bounded table.
inline uint8_t* marks_at(const TableView& t, const PartitionView& p, uint32_t number) {
  const RowLayout& l = t.layout;
  if (l.together) return reinterpret_cast<uint8_t*>(values_at(t, p, number)) + l.mark_offset;
  return row_at(t, p, number).version + (l.mark_offset - l.version_offset);
}

// The slots whose entry has the bits of h. Free slots may be among them: compare `place` as well.
inline uint32_t match_entries(const Chunk& c, uint64_t h, int number_bits) {
  const uint64_t want = h << number_bits, mask = ~uint64_t{0} << number_bits;
#if defined(__AVX512F__)
  const __m512i x = _mm512_xor_si512(_mm512_load_si512(&c), _mm512_set1_epi64(static_cast<long long>(want)));
  return _mm512_testn_epi64_mask(x, _mm512_set1_epi64(static_cast<long long>(mask))) & 0x7Fu;
#elif defined(__AVX2__)
  const __m256i w = _mm256_set1_epi64x(static_cast<long long>(want)),
                m = _mm256_set1_epi64x(static_cast<long long>(mask)), zero = _mm256_setzero_si256();
  const auto* at = reinterpret_cast<const __m256i*>(&c);
  const __m256i low = _mm256_and_si256(_mm256_xor_si256(_mm256_load_si256(at), w), m);
  const __m256i high = _mm256_and_si256(_mm256_xor_si256(_mm256_load_si256(at + 1), w), m);
  const int bits = _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(low, zero))) |
                   _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(high, zero))) << 4;
  return static_cast<uint32_t>(bits) & 0x7Fu;
#else
  uint32_t found = 0;
  for (int i = 0; i < Chunk::kSlots; ++i)
    found |= static_cast<uint32_t>(((c.entry[i] ^ want) & mask) == 0) << i;
  return found;
#endif
}

inline uint32_t number_in(const Chunk& c, int slot, int number_bits) {
  const uint64_t low = c.entry[slot] & ~(~uint64_t{0} << number_bits);
  return static_cast<uint32_t>(low | uint64_t{static_cast<uint8_t>(c.place[slot] >> 4)} << number_bits);
}

// The row number of mixed id h, or kNoRow. The plain search that the pipelines fall back to. `where`, if
// given, is the chunk and `slot` the place in it (null: in the stash).
inline uint32_t find_number(const PartitionView& p, int partition_bits, uint64_t h, Chunk** where = nullptr,
                            int* slot = nullptr) {
  const uint32_t home = home_chunk(h, partition_bits, p.chunks);
  for (uint32_t k = 0; k < 16; ++k) {
    const uint32_t offset = probe_offset(h, k);
    if (offset == Chunk::kFree) continue;
    Chunk& chunk = *chunk_at(p, chunk_behind(home, offset, p.chunks));
    for (uint32_t m = match_entries(chunk, h, p.number_bits); m; m &= m - 1) {
      const int s = __builtin_ctz(m);
      if ((chunk.place[s] & 15u) != offset) continue;
      if (where != nullptr) *where = &chunk, *slot = s;
      return number_in(chunk, s, p.number_bits);
    }
    if (chunk.overflow == 0) return kNoRow;
  }
  return p.stash == nullptr ? kNoRow : p.stash->find(h);
}

// What ties a row number to its id in a hint: see Store. Sums of it over a batch are equal only for the same
// pairs, unless who made them up knows the secret.
inline uint64_t seal_of(uint64_t secret, uint64_t h, uint32_t number) {
  const auto product = static_cast<unsigned __int128>(h ^ secret) *
                       ((uint64_t{number} + 1) * 0x9E3779B97F4A7C15ull ^ (secret << 32 | secret >> 32));
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace
}  // namespace satrap
