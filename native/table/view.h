// How kernels see a table: raw memory and numbers, no classes, no allocation.
#pragma once
#include <cstddef>
#include <cstdint>

#include "table/spec.h"

namespace satrap {

// One cache line of a partition's index: up to 7 rows, their exact ids included. Nothing of an id is stored
// twice: its partition and its home chunk follow from where the entry lies, the rest stands in the entry.
//
//   entry[i]  the low bits of the mixed id, above the row number's `number_bits` low ones
//   place[i]  low 4 bits: offset of this chunk from the row's home, 15: free; high 4 bits: the row number's
//   next overflow  rows that found this chunk full and went on (255: that many or more, for ever), so a
//   search ends
//             at the first chunk with a zero here
//
// A row whose home chunk is full lies up to 14 chunks behind it (wrapping at the partition's end), in an
// order that depends on its id, so that full chunks do not crowd their neighbours; what finds no place there
// goes to the partition's Stash.
struct alignas(64) Chunk {
  static constexpr int kSlots = 7;
  static constexpr uint8_t kFree = 15;  // also the number of chunks a row may lie in
  uint64_t entry[kSlots];
  uint8_t place[kSlots];
  uint8_t overflow;
};
static_assert(sizeof(Chunk) == 64);

constexpr int kChunkShift = 10;  // chunks to an index block: 64 KiB

class Stash;

// An empty partition is seen as one free chunk, so that kernels need not ask.
struct alignas(64) PartitionView {
  char* const* chunk_blocks = nullptr;
  char* const* value_blocks = nullptr;  // or records, where the layout keeps all of a row together
  char* const* side_blocks = nullptr;
  const Stash* stash = nullptr;  // null: empty
  uint32_t chunks = 1;
  uint32_t rows = 0;    // row numbers given out so far
  int number_bits = 0;  // of a row number, in an entry
};

struct TableView {
  const PartitionView* partitions;
  int partition_bits;
  int value_shift;         // rows to a block: 2^value_shift
  int side_shift;          // records to a block
  uint64_t group_inverse;  // 2^64 / layout.group, rounded up; 0 for a group of 1
  uint64_t secret;         // of the seals on hints
  RowLayout layout;
  const TableSpec* spec;
};

// Where a row is. Valid as long as the lock under which it was found.
struct Row {
  char* values = nullptr;
  float* state = nullptr;
  uint8_t* version = nullptr;
  explicit operator bool() const { return values != nullptr; }
  bool operator==(const Row&) const = default;
};

struct PullArgs {
  const uint64_t* ids;
  float* values;      // [n, D]
  uint8_t* versions;  // [n] or null
  uint32_t* hints;    // [n] row numbers within their partitions, kNoRow for the missing, or null
  uint32_t* missing;  // positions of ids without a row, ascending
  size_t missing_count = 0;
  uint64_t seal = 0;        // the sum of seal_of over the rows found, if there are hints
  bool past_cache = false;  // values are more than a cache holds: written past it
};

struct PushArgs {
  const uint64_t* ids;
  const float* gradients;   // [n, D]
  const uint8_t* versions;  // [n] as pulled, or null
  const uint32_t* hints;    // [n] as pulled, of these ids, and no row was removed since; or null
  float lr_factor;
  const float* adam_bias;  // 1 - beta1^t and 1 - beta2^t interleaved for t = 0 … kBiasSteps - 1, or null
  size_t applied = 0, missing = 0, not_finite = 0, hinted = 0;
  int64_t* staleness;  // [257] counts, owned by the caller's task
  // Whether rows have been removed since the pull, or may have been: a row may then have been made again, at
  // version 0. `pulled` [n], where there are hints: as they were pulled, those of such partitions too, which
  // `hints` is without.
  bool removals = false;
  const uint32_t* pulled = nullptr;
  // [n] or null: the version a row had before the step, or why its gradient was not applied.
  uint16_t* outcomes = nullptr;
};
constexpr uint32_t kNoRow = 0xFFFFFFFFu;
constexpr uint16_t kOutcomeMissing = 256, kOutcomeNotFinite = 257, kOutcomeNotAdmitted = 258;
constexpr size_t kBiasSteps = 4096;
// A row that may have been made again had as many updates since its pull only if they are fewer than this: of
// one that was, the pulled version is subtracted from a smaller one.
constexpr uint8_t kLagDoubted = 128;

// One feature of a batch. Positions are into its table's unique ids.
struct FeatureView {
  const int32_t* positions;  // [N]
  const int64_t* offsets;    // [B + 1], or null: one id a sample
  const float* weights;      // [N], or null
  uint8_t pooling;           // 0 sum, 1 mean, 2 sqrtn
  uint32_t dim;
  size_t column;  // first column in the packed tensor
};

// Kernels compiled once for every instruction-set level; `kernels()` is the best this processor runs. All of
// them give the same bits: no contraction, no reassociation, reductions over sixteen fixed lanes.
struct Kernels {
  const char* name;
  void (*pull)(const TableView&, size_t begin, size_t end, PullArgs&);
  void (*push)(const TableView&, size_t begin, size_t end, PushArgs&);
  // The sum of seal_of over ids and the row numbers that are not kNoRow.
  uint64_t (*seal)(uint64_t secret, const uint64_t* ids, const uint32_t* numbers, size_t n);
  void (*initialize)(const TableSpec&, uint64_t id, float* values, float* state);
  void (*encode)(ValueFormat, const float* values, char* row_values, uint32_t dim);
  void (*decode)(ValueFormat, const char* row_values, float* values, uint32_t dim);
  // out[b, column : column + dim] for samples [begin, end); `width` columns a sample.
  void (*pool)(const FeatureView&, const float* rows, size_t begin, size_t end, float* out, size_t width);
  // rows[u] += gradient, in the order of samples; columns [first, last) of the dim only.
  void (*unpool)(const FeatureView&, const float* grad, size_t samples, size_t width, float* rows,
                 uint32_t first, uint32_t last);
};
const Kernels& kernels();
// Every level this processor runs, the best last; the tests hold them against each other.
size_t kernel_levels(const Kernels* const** levels);

}  // namespace satrap
