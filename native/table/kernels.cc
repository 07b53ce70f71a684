// The hot loops. Compiled several times, each for one instruction-set level (SATRAP_LEVEL names it);
// everything here has internal linkage, so no code of a higher level can be linked into a lower one.
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "table/optimizers.h"
#include "table/probe.h"
#include "table/random.h"
#include "table/view.h"

namespace satrap {
namespace {

// ---- value formats
// -------------------------------------------------------------------------------------------------

void encode(ValueFormat format, const float* values, char* out, uint32_t dim) {
  if (format == ValueFormat::kFp32)
    std::memcpy(out, values, 4 * size_t{dim});
  else
    encode_half(values, out, dim);
}

void decode(ValueFormat format, const char* in, float* values, uint32_t dim) {
  if (format == ValueFormat::kFp32)
    std::memcpy(values, in, 4 * size_t{dim});
  else
    decode_half(in, values, dim);
}

void initialize(const TableSpec& spec, uint64_t id, float* values, float* state) {
  initial_values(spec.initializer, row_key(spec.key, id), values, spec.dim);
  if (state != nullptr) initial_state(spec.optimizer, values, state, spec.dim);
}

// ---- pull and push
// -------------------------------------------------------------------------------------------------

// Calls visit(i, row or null, row number) for ids [begin, end) in order. Three stages run on different ids at
// a time, so that the memory of the later ones is on its way while the first is served: the chunk of id i + 2
// kAhead is asked for, the candidate row of id i + kAhead is found in its chunk and asked for, and the row of
// id i is checked and visited. With hints (row numbers of an earlier search) the chunk is left out.
template <bool kWrite, bool kHints, typename Visit>
inline void for_each_row(const TableView& t, const uint64_t* ids, const uint32_t* hints, size_t begin,
                         size_t end, Visit&& visit) {
  constexpr size_t kAhead = 12, kRing = 32;
  struct Slot {
    uint64_t h;
    const PartitionView* partition;
    Chunk* chunk;
    char* row;
    uint32_t number;
  } ring[kRing];
  const uint32_t bytes = t.layout.stride;

  auto ask_chunk = [&](size_t i) {
    Slot& s = ring[i % kRing];
    s.h = mix(ids[i]);
    s.partition = &partition_of(t, s.h);
    s.chunk = nullptr;
    if (kHints || s.partition->chunks == 0) return;
    s.chunk = chunk_at(*s.partition, home_chunk(s.h, t.partition_bits, s.partition->chunks));
    __builtin_prefetch(s.chunk);
  };
  auto ask_row = [&](size_t i) {
    Slot& s = ring[i % kRing];
    s.row = nullptr;
    s.number = kNoRow;
    if constexpr (kHints) {
      s.number = hints[i];
      if (s.number >= s.partition->rows) return;
    } else {
      if (s.chunk == nullptr) return;
      const uint32_t m = match_tags(*s.chunk, static_cast<uint8_t>(s.h));
      if (m == 0) return;
      s.number = s.chunk->row[__builtin_ctz(m)];
    }
    s.row = row_at(t, *s.partition, s.number);
    // Rows are not aligned to cache lines: the last byte may lie one line further than the length says.
    for (uint32_t b = 0; b < bytes; b += 64) __builtin_prefetch(s.row + b, kWrite);
    __builtin_prefetch(s.row + bytes - 1, kWrite);
  };
  auto serve = [&](size_t i) {
    Slot& s = ring[i % kRing];
    if (s.row == nullptr || !same_id(s.row, s.h)) {
      // A second candidate in the chunk, or a row in a later chunk: rare, searched plainly.
      const bool absent = !kHints && (s.chunk == nullptr || (s.row == nullptr && s.chunk->overflow == 0));
      s.row = absent ? nullptr : find_row(t, *s.partition, s.h, &s.number);
    }
    visit(i, s.row, s.number);
  };

  const size_t n = end - begin;
  for (size_t k = 0; k < n + 2 * kAhead; ++k) {
    if (k < n) ask_chunk(begin + k);
    if (k >= kAhead && k - kAhead < n) ask_row(begin + k - kAhead);
    if (k >= 2 * kAhead) serve(begin + k - 2 * kAhead);
  }
}

template <uint32_t kDim, ValueFormat kFormat>
void pull_rows(const TableView& t, size_t begin, size_t end, PullArgs& a) {
  const uint32_t dim = kDim ? kDim : t.layout.dim;
  for_each_row<false, false>(t, a.ids, nullptr, begin, end, [&](size_t i, char* row, uint32_t number) {
    if (a.hints != nullptr) a.hints[i] = number;
    if (row == nullptr) {
      a.missing[a.missing_count++] = static_cast<uint32_t>(i);
      return;
    }
    if (a.versions != nullptr) a.versions[i] = static_cast<uint8_t>(row[0]);
    float* out = a.values + i * size_t{dim};
    if constexpr (kFormat == ValueFormat::kFp32)
      std::memcpy(out, row + RowLayout::kHeader, 4 * size_t{dim});
    else
      decode_half(row + RowLayout::kHeader, out, dim);
  });
}

template <ValueFormat kFormat>
void pull_format(const TableView& t, size_t begin, size_t end, PullArgs& a) {
  switch (t.layout.dim) {
    case 8:
      return pull_rows<8, kFormat>(t, begin, end, a);
    case 16:
      return pull_rows<16, kFormat>(t, begin, end, a);
    case 32:
      return pull_rows<32, kFormat>(t, begin, end, a);
    case 64:
      return pull_rows<64, kFormat>(t, begin, end, a);
    case 128:
      return pull_rows<128, kFormat>(t, begin, end, a);
    default:
      return pull_rows<0, kFormat>(t, begin, end, a);
  }
}

void pull(const TableView& t, size_t begin, size_t end, PullArgs& a) {
  if (t.spec->format == ValueFormat::kFp32)
    pull_format<ValueFormat::kFp32>(t, begin, end, a);
  else
    pull_format<ValueFormat::kFp16>(t, begin, end, a);
}

// All bits of a finite number's exponent are never set; one pass over the gradient without branches.
inline bool all_finite(const float* g, uint32_t dim) {
  uint32_t bad = 0;
  for (uint32_t j = 0; j < dim; ++j) {
    uint32_t b;
    std::memcpy(&b, g + j, 4);
    bad |= static_cast<uint32_t>((b & 0x7F800000u) == 0x7F800000u);
  }
  return bad == 0;
}

template <OptimizerKind kKind>
inline void step_row(const OptimizerSpec& o, float lr, const float* bias, float* w, float* s, const float* g,
                     uint32_t dim) {
  if constexpr (kKind == OptimizerKind::kSgd) sgd(o, lr, w, s, g, dim);
  if constexpr (kKind == OptimizerKind::kAdagrad) adagrad(o, lr, w, s, g, dim);
  if constexpr (kKind == OptimizerKind::kRowWiseAdagrad) rowwise_adagrad(o, lr, w, s, g, dim);
  if constexpr (kKind == OptimizerKind::kAdam || kKind == OptimizerKind::kAdamW)
    adam(o, lr, bias, w, s, g, dim);
  if constexpr (kKind == OptimizerKind::kFtrl) ftrl(o, lr, w, s, g, dim);
}

template <uint32_t kDim, ValueFormat kFormat, OptimizerKind kKind>
void push_rows(const TableView& t, size_t begin, size_t end, PushArgs& a) {
  const uint32_t dim = kDim ? kDim : t.layout.dim;
  const TableSpec& spec = *t.spec;
  const float lr = spec.optimizer.lr * a.lr_factor, limit = spec.max_gradient;
  const uint32_t state_offset = t.layout.state_offset();
  alignas(64) float values[kDim ? kDim : kMaxDim];
  alignas(64) float clipped[kDim ? kDim : kMaxDim];
  auto update = [&](size_t i, char* row, uint32_t) {
    if (row == nullptr) {
      ++a.missing;
      if (a.outcomes != nullptr) a.outcomes[i] = kOutcomeMissing;
      return;
    }
    const float* g = a.gradients + i * size_t{dim};
    if (!all_finite(g, dim)) {
      ++a.not_finite;
      if (a.outcomes != nullptr) a.outcomes[i] = kOutcomeNotFinite;
      return;
    }
    if (limit > 0) {
      for (uint32_t j = 0; j < dim; ++j) clipped[j] = g[j] > limit ? limit : (g[j] < -limit ? -limit : g[j]);
      g = clipped;
    }
    auto* state = reinterpret_cast<float*>(row + state_offset);
    if constexpr (kFormat == ValueFormat::kFp32) {
      step_row<kKind>(spec.optimizer, lr, a.adam_bias, reinterpret_cast<float*>(row + RowLayout::kHeader),
                      state, g, dim);
    } else {
      decode_half(row + RowLayout::kHeader, values, dim);
      step_row<kKind>(spec.optimizer, lr, a.adam_bias, values, state, g, dim);
      encode_half(values, row + RowLayout::kHeader, dim);
    }
    const auto version = static_cast<uint8_t>(row[0]);
    a.staleness[a.versions != nullptr ? static_cast<uint8_t>(version - a.versions[i]) : 256] += 1;
    if (a.outcomes != nullptr) a.outcomes[i] = version;
    row[0] = static_cast<char>(version + 1);
    ++a.applied;
  };
  if (a.hints != nullptr)
    for_each_row<true, true>(t, a.ids, a.hints, begin, end, update);
  else
    for_each_row<true, false>(t, a.ids, nullptr, begin, end, update);
}

template <ValueFormat kFormat, OptimizerKind kKind>
void push_dim(const TableView& t, size_t begin, size_t end, PushArgs& a) {
  switch (t.layout.dim) {
    case 8:
      return push_rows<8, kFormat, kKind>(t, begin, end, a);
    case 16:
      return push_rows<16, kFormat, kKind>(t, begin, end, a);
    case 32:
      return push_rows<32, kFormat, kKind>(t, begin, end, a);
    case 64:
      return push_rows<64, kFormat, kKind>(t, begin, end, a);
    case 128:
      return push_rows<128, kFormat, kKind>(t, begin, end, a);
    default:
      return push_rows<0, kFormat, kKind>(t, begin, end, a);
  }
}

template <ValueFormat kFormat>
void push_format(const TableView& t, size_t begin, size_t end, PushArgs& a) {
  switch (t.spec->optimizer.kind) {
    case OptimizerKind::kSgd:
      return push_dim<kFormat, OptimizerKind::kSgd>(t, begin, end, a);
    case OptimizerKind::kAdagrad:
      return push_dim<kFormat, OptimizerKind::kAdagrad>(t, begin, end, a);
    case OptimizerKind::kRowWiseAdagrad:
      return push_dim<kFormat, OptimizerKind::kRowWiseAdagrad>(t, begin, end, a);
    // AdamW differs from Adam in two factors, read from the spec.
    case OptimizerKind::kAdam:
    case OptimizerKind::kAdamW:
      return push_dim<kFormat, OptimizerKind::kAdam>(t, begin, end, a);
    case OptimizerKind::kFtrl:
      return push_dim<kFormat, OptimizerKind::kFtrl>(t, begin, end, a);
  }
}

void push(const TableView& t, size_t begin, size_t end, PushArgs& a) {
  if (t.spec->format == ValueFormat::kFp32)
    push_format<ValueFormat::kFp32>(t, begin, end, a);
  else
    push_format<ValueFormat::kFp16>(t, begin, end, a);
}

// ---- pooling and its gradient
// --------------------------------------------------------------------------------------

inline float weight_of(const FeatureView& f, int64_t k) { return f.weights == nullptr ? 1.0f : f.weights[k]; }

// What the weighted sum of a bag is multiplied by: 1, 1 / sum w, or 1 / sqrt(sum w^2); 0 for an empty or
// null-weight bag.
inline float bag_scale(const FeatureView& f, int64_t first, int64_t last) {
  if (f.pooling == 0) return 1.0f;
  float total = 0.0f;
  for (int64_t k = first; k < last; ++k) {
    const float w = weight_of(f, k);
    total += f.pooling == 1 ? w : w * w;
  }
  if (total == 0.0f) return 0.0f;
  return f.pooling == 1 ? 1.0f / total : 1.0f / std::sqrt(total);
}

template <uint32_t kDim>
void pool_dim(const FeatureView& f, const float* rows, size_t begin, size_t end, float* out, size_t width) {
  const uint32_t dim = kDim ? kDim : f.dim;
  const bool single = f.offsets == nullptr && (f.weights == nullptr || f.pooling != 0);
  if (single && f.weights == nullptr) {
    // The stride from sample to sample is longer than what hardware prefetchers follow.
    constexpr size_t kAhead = 12;
    for (size_t b = begin; b < end; ++b) {
      if (b + kAhead < end) {
        __builtin_prefetch(rows + size_t{static_cast<uint32_t>(f.positions[b + kAhead])} * dim);
        __builtin_prefetch(out + (b + kAhead) * width + f.column, 1);
      }
      std::memcpy(out + b * width + f.column, rows + size_t{static_cast<uint32_t>(f.positions[b])} * dim,
                  4 * size_t{dim});
    }
    return;
  }
  for (size_t b = begin; b < end; ++b) {
    const int64_t first = f.offsets ? f.offsets[b] : static_cast<int64_t>(b),
                  last = f.offsets ? f.offsets[b + 1] : first + 1;
    float* o = out + b * width + f.column;
    for (uint32_t j = 0; j < dim; ++j) o[j] = 0.0f;
    for (int64_t k = first; k < last; ++k) {
      const float w = weight_of(f, k);
      const float* r = rows + size_t{static_cast<uint32_t>(f.positions[k])} * dim;
      for (uint32_t j = 0; j < dim; ++j) o[j] += w * r[j];
    }
    const float scale = bag_scale(f, first, last);
    if (f.pooling != 0)
      for (uint32_t j = 0; j < dim; ++j) o[j] *= scale;
  }
}

void pool(const FeatureView& f, const float* rows, size_t begin, size_t end, float* out, size_t width) {
  switch (f.dim) {
    case 8:
      return pool_dim<8>(f, rows, begin, end, out, width);
    case 16:
      return pool_dim<16>(f, rows, begin, end, out, width);
    case 32:
      return pool_dim<32>(f, rows, begin, end, out, width);
    case 64:
      return pool_dim<64>(f, rows, begin, end, out, width);
    default:
      return pool_dim<0>(f, rows, begin, end, out, width);
  }
}

template <uint32_t kCols>
void unpool_columns(const FeatureView& f, const float* grad, size_t samples, size_t width, float* rows,
                    uint32_t first, uint32_t last) {
  const uint32_t n = kCols ? kCols : last - first;
  if (f.offsets == nullptr && f.weights == nullptr) {
    constexpr size_t kAhead = 12;
    for (size_t b = 0; b < samples; ++b) {
      if (b + kAhead < samples) __builtin_prefetch(grad + (b + kAhead) * width + f.column + first);
      const float* g = grad + b * width + f.column + first;
      float* r = rows + size_t{static_cast<uint32_t>(f.positions[b])} * f.dim + first;
      for (uint32_t j = 0; j < n; ++j) r[j] += g[j];
    }
    return;
  }
  for (size_t b = 0; b < samples; ++b) {
    const int64_t k0 = f.offsets ? f.offsets[b] : static_cast<int64_t>(b),
                  k1 = f.offsets ? f.offsets[b + 1] : k0 + 1;
    const float scale = bag_scale(f, k0, k1);
    const float* g = grad + b * width + f.column + first;
    for (int64_t k = k0; k < k1; ++k) {
      const float w = weight_of(f, k) * scale;
      float* r = rows + size_t{static_cast<uint32_t>(f.positions[k])} * f.dim + first;
      for (uint32_t j = 0; j < n; ++j) r[j] += w * g[j];
    }
  }
}

void unpool(const FeatureView& f, const float* grad, size_t samples, size_t width, float* rows,
            uint32_t first, uint32_t last) {
  switch (last - first) {
    case 8:
      return unpool_columns<8>(f, grad, samples, width, rows, first, last);
    case 16:
      return unpool_columns<16>(f, grad, samples, width, rows, first, last);
    case 32:
      return unpool_columns<32>(f, grad, samples, width, rows, first, last);
    case 64:
      return unpool_columns<64>(f, grad, samples, width, rows, first, last);
    default:
      return unpool_columns<0>(f, grad, samples, width, rows, first, last);
  }
}

}  // namespace

#define SATRAP_CONCAT2(a, b) a##b
#define SATRAP_CONCAT(a, b) SATRAP_CONCAT2(a, b)
#define SATRAP_STRING2(a) #a
#define SATRAP_STRING(a) SATRAP_STRING2(a)

extern const Kernels SATRAP_CONCAT(kernels_, SATRAP_LEVEL);
const Kernels SATRAP_CONCAT(kernels_, SATRAP_LEVEL) = {
    SATRAP_STRING(SATRAP_LEVEL), pull, push, initialize, encode, decode, pool, unpool};

}  // namespace satrap
