// What a table is: its row layout, how rows begin and how they are updated. Plain data, shared with the
// kernels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace satrap {

constexpr uint32_t kMaxDim = 4096;

enum class ValueFormat : uint8_t { kFp32, kFp16 };
enum class OptimizerKind : uint8_t { kSgd, kAdagrad, kRowWiseAdagrad, kAdam, kAdamW, kFtrl };
enum class InitializerKind : uint8_t { kUniform, kNormal, kTruncatedNormal, kConstant };

// Settings of every optimizer; each reads its own. See satrap.schema.optimizers for their meaning.
struct OptimizerSpec {
  OptimizerKind kind = OptimizerKind::kSgd;
  float lr = 0.0f, momentum = 0.0f, beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, weight_decay = 0.0f;
  float initial_accumulator = 0.0f, ftrl_beta = 1.0f, l1 = 0.0f, l2 = 0.0f;
};

// a, b: low and high; mean and standard deviation; or the constant and nothing.
struct InitializerSpec {
  InitializerKind kind = InitializerKind::kUniform;
  float a = 0.0f, b = 0.0f;
};

struct TableSpec {
  uint32_t dim = 0;
  ValueFormat format = ValueFormat::kFp32;
  OptimizerSpec optimizer;
  InitializerSpec initializer;
  float max_gradient = 0.0f;  // 0: no clipping
  uint64_t key = 0;           // of the random numbers of new rows: from the job's seed and the table's name
};

// A row: 8-byte header, values, state. The header is the mixed id with its low byte replaced by the row's
// version (updates modulo 256); that byte of the mixed id is the row's tag in the index, so no bit of the id
// is lost.
struct RowLayout {
  uint32_t dim, value_bytes, state_floats, stride;
  explicit RowLayout(const TableSpec& s);
  static constexpr uint32_t kHeader = 8;
  uint32_t state_offset() const { return kHeader + value_bytes; }
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
      return 2 * dim + 1;  // first moment, second moment, steps of this row
    case OptimizerKind::kFtrl:
      return 2 * dim + 1;  // z, n, the learning rate of this row's last step
  }
  return 0;
}

inline RowLayout::RowLayout(const TableSpec& s)
    : dim(s.dim),
      // Rounded to 4 bytes so that the state stays aligned behind an odd number of fp16 values.
      value_bytes((s.dim * (s.format == ValueFormat::kFp32 ? 4u : 2u) + 3u) & ~3u),
      state_floats(satrap::state_floats(s.optimizer, s.dim)),
      stride(kHeader + value_bytes + 4 * state_floats) {}

}  // namespace satrap
