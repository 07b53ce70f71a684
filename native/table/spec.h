// What a table is: its row layout, how rows begin and how they are updated. Plain data, shared with the
// kernels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace satrap {

constexpr uint32_t kMaxDim = 4096;

enum class ValueFormat : uint8_t { kFp32, kFp16, kBf16, kInt8 };
// Of a value that an update leaves between two that the format has. First values are rounded to the nearest.
enum class Rounding : uint8_t { kNearest, kStochastic };
enum class OptimizerKind : uint8_t { kSgd, kAdagrad, kRowWiseAdagrad, kAdam, kAdamW, kFtrl };
enum class StateFormat : uint8_t { kFp32, kInt8 };
enum class InitializerKind : uint8_t { kUniform, kNormal, kTruncatedNormal, kConstant };

constexpr uint32_t kMomentBlock = 64;  // elements of a row whose 8-bit moments share their scales

// Settings of every optimizer; each reads its own. See satrap.schema.optimizers for their meaning.
struct OptimizerSpec {
  OptimizerKind kind = OptimizerKind::kSgd;
  float lr = 0.0f, momentum = 0.0f, beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, weight_decay = 0.0f;
  float initial_accumulator = 0.0f, ftrl_beta = 1.0f, l1 = 0.0f, l2 = 0.0f;
  StateFormat state = StateFormat::kFp32;  // kInt8: Adam and AdamW only, see moments.h
};

// a, b: low and high; mean and standard deviation; or the constant and nothing.
struct InitializerSpec {
  InitializerKind kind = InitializerKind::kUniform;
  float a = 0.0f, b = 0.0f;
};

enum class Eviction : uint8_t { kNone, kRecency, kFrequency };

// What keeps a table from growing without end; all zero: nothing. See table/bounds.h.
struct BoundSpec {
  Eviction eviction = Eviction::kNone;  // which rows go where there is no room; kNone: there always is
  uint64_t rows = 0, bytes = 0;         // capacity of the whole table, one of the two
  uint64_t ttl = 0;                     // steps or seconds without a use after which a row goes; 0: never
  bool ttl_seconds = false;
  uint32_t sightings = 0;  // pulls that must name an id before it gets a row; 0: the first makes it
  uint64_t window = 0;     // of the whole table's sightings of ids without a row, within which they count
  bool any() const { return eviction != Eviction::kNone || ttl != 0 || sightings != 0; }
  // Bytes a row beside its version: of eviction, and behind it of expiry.
  uint32_t marks() const { return (eviction != Eviction::kNone) + (ttl != 0); }
};

struct TableSpec {
  uint32_t dim = 0;
  ValueFormat format = ValueFormat::kFp32;
  Rounding rounding = Rounding::kNearest;
  OptimizerSpec optimizer;
  InitializerSpec initializer;
  float max_gradient = 0.0f;  // 0: no clipping
  uint64_t key = 0;  // of the random numbers of new rows and of rounding: from the job's seed and the name
  BoundSpec bound;
};

// Of a row's values as they are stored; an int8 row begins with its scale.
inline uint32_t stored_bytes(ValueFormat format, uint32_t dim) {
  switch (format) {
    case ValueFormat::kFp32:
      return 4 * dim;
    case ValueFormat::kFp16:
    case ValueFormat::kBf16:
      return 2 * dim;
    case ValueFormat::kInt8:
      return 4 + dim;
  }
  return 0;
}

// Where the parts of a row lie: values, optimizer state, version (updates modulo 256). Values that fill whole
// cache lines have blocks of their own, so that a lookup touches these lines and no other; their states and
// versions lie in records beside them, several rows to one line where they fit. Other values lie together
// with state and version: that spans fewer lines over a pull and the push that follows. A bounded table's
// marks lie beside the version, in the same line; other tables have none.
struct RowLayout {
  static constexpr uint32_t kLine = 64;
  uint32_t dim, value_bytes, state_floats;
  bool together;          // values, state and version in one record
  uint32_t value_stride;  // bytes from the values of a row to those of the next
  uint32_t state_offset;  // of the first state: in the row's record if together, else in the record beside
  uint32_t version_offset;
  uint32_t group, record_bytes;  // records beside: rows of one, and its length
  uint32_t marks, mark_offset;   // of a row, and where its first one is; the next lies mark_stride behind
  uint32_t mark_stride;
  explicit RowLayout(const TableSpec& s);
  uint32_t state_bytes() const { return 4 * state_floats; }
};

inline uint32_t state_floats(const OptimizerSpec& o, uint32_t dim) {
  switch (o.kind) {
    case OptimizerKind::kSgd:
      return o.momentum > 0 ? dim : 0;
    case OptimizerKind::kAdagrad:
      return dim;
    case OptimizerKind::kRowWiseAdagrad:
      return 1;
    case OptimizerKind::kAdam:
    case OptimizerKind::kAdamW:
      if (o.state == StateFormat::kInt8)  // steps, scales of each block, codes of both moments
        return 1 + (dim + kMomentBlock - 1) / kMomentBlock + (2 * dim + 3) / 4;
      return 2 * dim + 1;  // first moment, second moment, steps of this row
    case OptimizerKind::kFtrl:
      return 2 * dim + 1;  // z, n, the learning rate of this row's last step
  }
  return 0;
}

// Whether what a row becomes depends on its version: the random bits of a rounding are drawn from it. Such a
// row's version is part of what is exported, and imported again: one more word of state, its number as bits.
inline bool keeps_version(const TableSpec& s) {
  const bool rounds = s.format != ValueFormat::kFp32 && s.rounding == Rounding::kStochastic;
  return rounds || s.optimizer.state == StateFormat::kInt8;
}
inline uint32_t exported_words(const TableSpec& s) {
  return state_floats(s.optimizer, s.dim) + (keeps_version(s) ? 1 : 0);
}

inline RowLayout::RowLayout(const TableSpec& s)
    : dim(s.dim),
      // Rounded to 4 bytes so that the state stays aligned behind an odd number of fp16 values.
      value_bytes((stored_bytes(s.format, s.dim) + 3u) & ~3u),
      state_floats(satrap::state_floats(s.optimizer, s.dim)),
      marks(s.bound.marks()) {
  together = value_bytes % kLine != 0;
  const uint32_t side = state_bytes() + 1 + marks;  // and the version
  if (together) {
    value_stride = (value_bytes + side + 3) & ~3u;
    state_offset = value_bytes;
    version_offset = value_bytes + state_bytes();
    group = record_bytes = 0;
    mark_offset = version_offset + 1;
    mark_stride = 1;
  } else {
    value_stride = value_bytes;
    group = kLine / side > 1 ? kLine / side : 1;
    record_bytes = group > 1 ? kLine : (side + 3) & ~3u;
    state_offset = 0;
    version_offset = group * state_bytes();
    mark_offset = version_offset + group;
    mark_stride = group;
  }
}

}  // namespace satrap
