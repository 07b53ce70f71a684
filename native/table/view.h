// How kernels see a table: raw memory and numbers, no classes, no allocation.
#pragma once
#include <cstddef>
#include <cstdint>

#include "table/spec.h"

namespace satrap {

// One cache line of a partition's index: up to 12 rows. A row whose home chunk is full lies in a later one,
// and every chunk it passed counts it in `overflow` (255: that many or more, for ever), so a search ends at
// the first chunk with a zero there. Linear, wrapping at the partition's end.
struct alignas(64) Chunk {
  static constexpr int kSlots = 12;
  uint8_t tag[kSlots];
  uint16_t occupied;  // bit i: slot i holds a row
  uint8_t overflow;
  uint8_t unused;
  uint32_t row[kSlots];
};
static_assert(sizeof(Chunk) == 64);

constexpr int kChunkShift = 10;  // chunks to an index block: 64 KiB

struct PartitionView {
  char* const* chunk_blocks = nullptr;
  char* const* row_blocks = nullptr;
  uint32_t chunks = 0;  // 0: the partition is empty
  uint32_t rows = 0;    // row numbers given out so far
};

struct TableView {
  const PartitionView* partitions;
  int partition_bits;
  int row_shift;  // rows to a block: 2^row_shift
  RowLayout layout;
  const TableSpec* spec;
};

struct PullArgs {
  const uint64_t* ids;
  float* values;      // [n, D]
  uint8_t* versions;  // [n] or null
  uint32_t* hints;    // [n] row numbers within their partitions, or null
  uint32_t* missing;  // positions of ids without a row, ascending
  size_t missing_count = 0;
};

struct PushArgs {
  const uint64_t* ids;
  const float* gradients;   // [n, D]
  const uint8_t* versions;  // [n] as pulled, or null
  const uint32_t* hints;    // [n] as pulled while no row was removed since, or null
  float lr_factor;
  const float* adam_bias;  // 1 - beta1^t and 1 - beta2^t interleaved for t = 0 … kBiasSteps - 1, or null
  size_t applied = 0, missing = 0, not_finite = 0;
  int64_t* staleness;  // [257] counts, owned by the caller's task
  // [n] or null: the version a row had before the step, or why its gradient was not applied.
  uint16_t* outcomes = nullptr;
};
constexpr uint16_t kOutcomeMissing = 256, kOutcomeNotFinite = 257;
constexpr size_t kBiasSteps = 4096;

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
