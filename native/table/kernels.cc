// The hot loops. Compiled several times, each for one instruction-set level (SATRAP_LEVEL names it);
// everything here has internal linkage, so no code of a higher level can be linked into a lower one.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "table/formats.h"
#include "table/moments.h"
#include "table/optimizers.h"
#include "table/probe.h"
#include "table/random.h"
#include "table/view.h"

namespace satrap {
namespace {

// ---- value formats
// -------------------------------------------------------------------------------------------------

// Calls what(format) with the format as a constant.
template <typename What>
inline void by_format(ValueFormat format, What&& what) {
  switch (format) {
    case ValueFormat::kFp32:
      return what(std::integral_constant<ValueFormat, ValueFormat::kFp32>());
    case ValueFormat::kFp16:
      return what(std::integral_constant<ValueFormat, ValueFormat::kFp16>());
    case ValueFormat::kBf16:
      return what(std::integral_constant<ValueFormat, ValueFormat::kBf16>());
    case ValueFormat::kInt8:
      return what(std::integral_constant<ValueFormat, ValueFormat::kInt8>());
  }
}

// Whether dims have code of their own: all that are asked for, as shipped. With the sanitizers only the two
// that differ in more than the length of loops (rows of one line and of several): the others are the same
// source.
#if defined(SATRAP_FEW_DIMS)
constexpr bool has_code(uint32_t dim) { return dim == 16 || dim == 64; }
#else
constexpr bool has_code(uint32_t) { return true; }
#endif

// Calls what(dim) with the dim as a constant where it is one of kDims, else with 0.
template <uint32_t... kDims, typename What>
inline void by_dim(uint32_t dim, What&& what) {
  const auto is = [&]<uint32_t kDim>() {
    if constexpr (has_code(kDim)) {
      if (dim == kDim) return what(std::integral_constant<uint32_t, kDim>()), true;
    }
    return false;
  };
  if (!(is.template operator()<kDims>() || ...)) what(std::integral_constant<uint32_t, 0>());
}

void encode(ValueFormat format, const float* values, char* out, uint32_t dim) {
  by_format(format, [&](auto f) { encode_values<f>(values, out, dim); });
}

void decode(ValueFormat format, const char* in, float* values, uint32_t dim) {
  by_format(format, [&](auto f) { decode_values<f>(in, values, dim); });
}

// memcpy of a length the build knows, which would become a slow string instruction.
inline void copy_floats(const char* in, float* out, uint32_t dim) {
  typedef float Eight __attribute__((vector_size(32)));
  uint32_t j = 0;
  for (; j + 8 <= dim; j += 8) {
    Eight v;
    std::memcpy(&v, in + 4 * size_t{j}, 32);
    std::memcpy(out + j, &v, 32);
  }
  std::memcpy(out + j, in + 4 * size_t{j}, 4 * size_t{dim - j});
}

// The same past the cache, for an output that is larger than it: lines are not read to be overwritten. `out`
// on a cache line, whole lines.
inline void stream_floats(const char* in, float* out, uint32_t dim) {
#if defined(__AVX512F__)
  for (uint32_t j = 0; j < dim; j += 16) _mm512_stream_ps(out + j, _mm512_loadu_ps(in + 4 * size_t{j}));
#elif defined(__AVX__)
  for (uint32_t j = 0; j < dim; j += 8)
    _mm256_stream_ps(out + j, _mm256_loadu_ps(reinterpret_cast<const float*>(in + 4 * size_t{j})));
#else
  copy_floats(in, out, dim);
#endif
}

void initialize(const TableSpec& spec, uint64_t id, float* values, float* state) {
  initial_values(spec.initializer, row_key(spec.key, id), values, spec.dim);
  if (state != nullptr) initial_state(spec.optimizer, values, state, spec.dim);
}

// ---- pull and push
// -------------------------------------------------------------------------------------------------

enum class Use { kValues, kVersions, kAll };  // of a row: values; values and version; everything, written too

// Calls visit(i, h, row, row number) for ids [begin, end) in order; a missing row has the number kNoRow and a
// row that must not be used. With hints (row numbers of an earlier search) the index is left out. kBytes: of
// the values of a row, where the build knows it; else 0.
//
// Ids go through five stages, a block of them at a time, so that what one stage asks of memory has arrived
// when the next needs it: the home chunk is asked for; it is searched, and the next chunk of those that are
// not in it (one in eleven) is asked for; that one is searched, and again; rows are asked for; rows are
// visited. Each stage is a short loop without branches on what has just been read, so that a processor has
// many requests under way; one loop over all stages was measured and is slower (docs/dead-ends.md).
template <Use kUse, bool kHints, uint32_t kBytes, typename Ask, typename Visit>
inline void for_each_row(const TableView& view, const uint64_t* ids, const uint32_t* hints, size_t begin,
                         size_t end, Ask&& ask, Visit&& visit) {
  const TableView t = view;  // a copy: what is written to rows cannot change it
  // Rows of several lines: visits fill the time in which requests are taken, and few are under way at a time.
  constexpr bool kInTurn = kBytes >= 256;
  constexpr size_t kBlock = kUse == Use::kAll && kInTurn ? 16 : 32;
  constexpr size_t kRounds =
      kHints ? 0 : 2;  // of searches behind the home chunk; the rest is searched at once
  constexpr size_t kLast = kHints ? 1 : kRounds + 3, kRing = kLast + 1;
  constexpr int kWrite = kUse == Use::kAll;
  struct alignas(64) Block {
    uint64_t h[kBlock];
    const Chunk* chunk[kBlock];
    Row row[kBlock];
    uint32_t number[kBlock];
    uint8_t open[kBlock];  // which of them are still searched for
    uint32_t open_count;
  } ring[kRing];
  const uint32_t value_bytes = kBytes != 0 ? kBytes : t.layout.value_bytes;
  const size_t blocks = (end - begin + kBlock - 1) / kBlock;
  const auto size_of = [&](size_t b) { return std::min(kBlock, end - begin - b * kBlock); };

  auto ask_chunk = [&](Block& k, size_t i, const PartitionView& p, uint32_t c) {
    k.chunk[i] = chunk_at(p, c);
    __builtin_prefetch(k.chunk[i]);
  };
  auto mix_ids = [&](Block& k, size_t b) {
    const uint64_t* first = ids + begin + b * kBlock;
    const size_t count = size_of(b);
    for (size_t i = 0; i < count; ++i) k.h[i] = mix(first[i]);
  };
  auto ask_homes = [&](Block& k, size_t b) {
    mix_ids(k, b);
    const size_t count = size_of(b);
    for (size_t i = 0; i < count; ++i) {
      const PartitionView& p = partition_of(t, k.h[i]);
      ask_chunk(k, i, p, home_chunk(k.h[i], t.partition_bits, p.chunks));
    }
  };
  // Looks for id i of a block in the chunk that was asked for, which lies `offset` behind its home. True if
  // that settles it: the number is there, or the id is in no chunk behind this one.
  auto settle = [&](Block& k, size_t i, const PartitionView& p, uint32_t offset) {
    const Chunk& chunk = *k.chunk[i];
    const uint32_t m = match_entries(chunk, k.h[i], p.number_bits);
    const int slot = __builtin_ctz(m | 1u << 6);
    const uint32_t place = chunk.place[slot] & 15u;
    const bool here = (m != 0) & (place == offset) & (offset != Chunk::kFree);
    // Two entries with the same bits are those of different homes, and the first may hide the second.
    const bool nowhere = (chunk.overflow == 0) & ((m & (m - 1)) == 0) & (offset != Chunk::kFree);
    k.number[i] = here ? number_in(chunk, slot, p.number_bits) : kNoRow;
    return here | nowhere;
  };
  auto ask_behind = [&](Block& k, size_t i, const PartitionView& p, uint32_t round) {
    const uint32_t home = home_chunk(k.h[i], t.partition_bits, p.chunks);
    ask_chunk(k, i, p, chunk_behind(home, probe_offset(k.h[i], round), p.chunks));
  };
  auto search_homes = [&](Block& k, size_t count) {
    uint32_t open = 0;
    for (size_t i = 0; i < count; ++i) {
      const bool settled = settle(k, i, partition_of(t, k.h[i]), 0);
      k.open[open] = static_cast<uint8_t>(i);
      open += !settled;
    }
    k.open_count = open;
    for (uint32_t q = 0; q < open; ++q) ask_behind(k, k.open[q], partition_of(t, k.h[k.open[q]]), 1);
  };
  auto search_behind = [&](Block& k, uint32_t round) {
    uint32_t open = 0;
    for (uint32_t q = 0; q < k.open_count; ++q) {
      const size_t i = k.open[q];
      const PartitionView& p = partition_of(t, k.h[i]);
      const bool settled = settle(k, i, p, probe_offset(k.h[i], round));
      ask_behind(k, i, p, round + 1);
      k.open[open] = static_cast<uint8_t>(i);
      open += !settled;
    }
    k.open_count = open;
  };
  auto ask_row = [&](Row& row, const PartitionView& p, uint32_t number) {
    if constexpr (kUse == Use::kValues)
      row.values = values_at(t, p, number);
    else
      row = row_at(t, p, number);
    if (t.layout.together) {
      const uint32_t bytes = kUse == Use::kAll ? t.layout.value_stride : value_bytes;
      // Not aligned to cache lines: the last byte may lie one line further than the length says.
      for (uint32_t b = 0; b < bytes; b += 64) __builtin_prefetch(row.values + b, kWrite);
      __builtin_prefetch(row.values + bytes - 1, kWrite);
      if constexpr (kUse == Use::kVersions) __builtin_prefetch(row.version);
      return;
    }
    for (uint32_t b = 0; b < value_bytes; b += 64) __builtin_prefetch(row.values + b, kWrite);
    if constexpr (kUse != Use::kValues) __builtin_prefetch(row.version, kWrite);
    if constexpr (kUse == Use::kAll)
      for (uint32_t b = t.layout.group > 1 ? 64 : 0; b < t.layout.version_offset; b += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(row.state) + b, 1);
  };
  auto number_rows = [&](Block& k, size_t b) {
    if constexpr (kHints) {
      mix_ids(k, b);
      const size_t count = size_of(b);
      for (size_t i = 0; i < count; ++i) {
        k.number[i] = hints[begin + b * kBlock + i];
        if (k.number[i] == kNoRow)
          k.number[i] = find_number(partition_of(t, k.h[i]), t.partition_bits, k.h[i]);
      }
    } else {
      for (uint32_t q = 0; q < k.open_count; ++q) {
        const size_t i = k.open[q];
        k.number[i] = find_number(partition_of(t, k.h[i]), t.partition_bits, k.h[i]);
      }
    }
  };
  auto ask_one = [&](Block& k, size_t i) {
    // What is not there is asked for as row 0: no branch.
    ask_row(k.row[i], partition_of(t, k.h[i]), k.number[i] == kNoRow ? 0 : k.number[i]);
  };
  auto ask_rows = [&](Block& k, size_t b, size_t from) {
    const size_t first = begin + b * kBlock, count = size_of(b);
    for (size_t i = from; i < count; ++i) ask_one(k, i);
    for (size_t i = from; i < count; ++i) ask(first + i);
  };
  auto visit_rows = [&](const Block& k, size_t b, size_t from) {
    const size_t first = begin + b * kBlock, count = size_of(b);
    for (size_t i = from; i < count; ++i) visit(first + i, k.h[i], k.row[i], k.number[i]);
  };

  for (size_t b = 0; b < blocks + kLast; ++b) {
    const auto at = [&](size_t stage) -> Block& { return ring[(b - stage) % kRing]; };
    const auto reached = [&](size_t stage) { return b >= stage && b - stage < blocks; };
    if constexpr (!kHints) {
      if (reached(0)) ask_homes(at(0), b);
      if (reached(1)) search_homes(at(1), size_of(b - 1));
      for (size_t r = 0; r < kRounds; ++r)
        if (reached(2 + r)) search_behind(at(2 + r), static_cast<uint32_t>(1 + r));
    }
    const size_t asked = b - (kLast - 1), visited = b - kLast;
    Block& next = at(kLast - 1);
    const Block& now = at(kLast);
    size_t both = 0;
    if (reached(kLast - 1)) number_rows(next, asked);
    if constexpr (kInTurn)
      if (reached(kLast - 1) && reached(kLast))
        for (; both < size_of(asked); ++both) {
          ask_one(next, both);
          ask(begin + asked * kBlock + both);
          visit(begin + visited * kBlock + both, now.h[both], now.row[both], now.number[both]);
        }
    if (reached(kLast - 1)) ask_rows(next, asked, both);
    if (reached(kLast)) visit_rows(now, visited, both);
  }
}

template <uint32_t kDim, ValueFormat kFormat>
constexpr uint32_t known_bytes() {
  if (kDim == 0) return 0;
  switch (kFormat) {
    case ValueFormat::kFp32:
      return 4 * kDim;
    case ValueFormat::kFp16:
    case ValueFormat::kBf16:
      return 2 * kDim;
    case ValueFormat::kInt8:
      return 4 + kDim;
  }
  return 0;
}

template <uint32_t kDim, ValueFormat kFormat, Use kUse, bool kStream>
void pull_rows(const TableView& t, size_t begin, size_t end, PullArgs& a) {
  const uint32_t dim = kDim ? kDim : t.layout.dim;
  for_each_row<kUse, false, known_bytes<kDim, kFormat>()>(
      t, a.ids, nullptr, begin, end,
      [&](size_t i) {
        if constexpr (kStream) return;
        for (uint32_t j = 0; j < dim; j += 16) __builtin_prefetch(a.values + i * size_t{dim} + j, 1);
      },
      [&](size_t i, uint64_t h, const Row& row, uint32_t number) {
        if (a.hints != nullptr) a.hints[i] = number;
        if (number == kNoRow) {
          a.missing[a.missing_count++] = static_cast<uint32_t>(i);
          return;
        }
        if (a.hints != nullptr) a.seal += seal_of(t.secret, h, number);
        if constexpr (kUse == Use::kVersions) a.versions[i] = *row.version;
        float* out = a.values + i * size_t{dim};
        if constexpr (kStream)
          stream_floats(row.values, out, dim);
        else if constexpr (kFormat == ValueFormat::kFp32)
          copy_floats(row.values, out, dim);
        else
          decode_values<kFormat>(row.values, out, dim);
      });
}

template <uint32_t kDim, ValueFormat kFormat, bool kStream = false>
void pull_dim(const TableView& t, size_t begin, size_t end, PullArgs& a) {
  if constexpr (kDim >= 16 && kFormat == ValueFormat::kFp32 && !kStream)
    if (a.past_cache && reinterpret_cast<uintptr_t>(a.values) % 64 == 0) {
      pull_dim<kDim, kFormat, true>(t, begin, end, a);
      std::atomic_thread_fence(std::memory_order_seq_cst);  // of the stores past the cache too
      return;
    }
  if (a.versions != nullptr)
    pull_rows<kDim, kFormat, Use::kVersions, kStream>(t, begin, end, a);
  else
    pull_rows<kDim, kFormat, Use::kValues, kStream>(t, begin, end, a);
}

template <ValueFormat kFormat>
void pull_format(const TableView& t, size_t begin, size_t end, PullArgs& a) {
  by_dim<8, 16, 32, 64, 128>(t.layout.dim, [&](auto dim) { pull_dim<dim, kFormat>(t, begin, end, a); });
}

void pull(const TableView& t, size_t begin, size_t end, PullArgs& a) {
  by_format(t.spec->format, [&](auto f) { pull_format<f>(t, begin, end, a); });
}

// All bits of a finite number's exponent are never set; one pass over the gradient without branches. In
// vectors by hand: a row of known length would be unrolled to one comparison at a time.
inline bool all_finite(const float* g, uint32_t dim) {
  typedef uint32_t Bits __attribute__((vector_size(32)));
  Bits bad = {};
  uint32_t j = 0;
  for (; j + 8 <= dim; j += 8) {
    Bits b;
    std::memcpy(&b, g + j, 32);
    bad |= static_cast<Bits>((b & 0x7F800000u) == 0x7F800000u);
  }
  uint64_t parts[4];
  std::memcpy(parts, &bad, 32);
  uint32_t rest = 0;
  for (; j < dim; ++j) {
    uint32_t b;
    std::memcpy(&b, g + j, 4);
    rest |= static_cast<uint32_t>((b & 0x7F800000u) == 0x7F800000u);
  }
  return ((parts[0] | parts[1]) | (parts[2] | parts[3]) | rest) == 0;
}

template <OptimizerKind kKind>
inline void step_row(const OptimizerSpec& o, float lr, const float* bias, float* w, float* s, const float* g,
                     uint32_t dim, Draws random) {
  if constexpr (kKind == OptimizerKind::kSgd) sgd(o, lr, w, s, g, dim);
  if constexpr (kKind == OptimizerKind::kAdagrad) adagrad(o, lr, w, s, g, dim);
  if constexpr (kKind == OptimizerKind::kRowWiseAdagrad) rowwise_adagrad(o, lr, w, s, g, dim);
  if constexpr (kKind == OptimizerKind::kAdam || kKind == OptimizerKind::kAdamW) {
    if (o.state == StateFormat::kInt8)
      adam_in_blocks(o, lr, bias, w, s, g, dim, random);
    else
      adam(o, lr, bias, w, s, g, dim);
  }
  if constexpr (kKind == OptimizerKind::kFtrl) ftrl(o, lr, w, s, g, dim);
}

template <uint32_t kDim, ValueFormat kFormat, OptimizerKind kKind>
void push_rows(const TableView& t, size_t begin, size_t end, PushArgs& a) {
  const uint32_t dim = kDim ? kDim : t.layout.dim;
  const TableSpec& spec = *t.spec;
  const float lr = spec.optimizer.lr * a.lr_factor, limit = spec.max_gradient;
  alignas(64) float values[kDim ? kDim : kMaxDim];
  alignas(64) float clipped[kDim ? kDim : kMaxDim];
  auto ask_gradient = [&](size_t i) {
    for (uint32_t j = 0; j < dim; j += 16) __builtin_prefetch(a.gradients + i * size_t{dim} + j);
  };
  const bool draws = keeps_version(spec), at_random = spec.rounding == Rounding::kStochastic;
  auto update = [&](size_t i, uint64_t h, const Row& row, uint32_t number) {
    if (number == kNoRow) {
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
    const uint8_t version = *row.version;
    const Draws random = draws ? draws_of(spec.key, h, version, g[0]) : Draws();
    if constexpr (kFormat == ValueFormat::kFp32) {
      step_row<kKind>(spec.optimizer, lr, a.adam_bias, reinterpret_cast<float*>(row.values), row.state, g,
                      dim, random);
    } else {
      decode_values<kFormat>(row.values, values, dim);
      step_row<kKind>(spec.optimizer, lr, a.adam_bias, values, row.state, g, dim, random);
      if (at_random)
        encode_values<kFormat>(values, row.values, dim, random);
      else
        encode_values<kFormat>(values, row.values, dim);
    }
    size_t lag = 256;
    if (a.versions != nullptr) {
      lag = static_cast<uint8_t>(version - a.versions[i]);
      if (a.removals && (a.hints == nullptr || a.hints[i] != a.pulled[i]) &&
          (lag >= kLagDoubted || (a.pulled != nullptr && a.pulled[i] != number)))
        lag = 256;
    }
    a.staleness[lag] += 1;
    if (a.outcomes != nullptr) a.outcomes[i] = version;
    *row.version = static_cast<uint8_t>(version + 1);
    ++a.applied;
  };
  if (a.hints != nullptr) {
    for (size_t i = begin; i < end; ++i) a.hinted += a.hints[i] != kNoRow;
    for_each_row<Use::kAll, true, known_bytes<kDim, kFormat>()>(t, a.ids, a.hints, begin, end, ask_gradient,
                                                                update);
  } else {
    for_each_row<Use::kAll, false, known_bytes<kDim, kFormat>()>(t, a.ids, nullptr, begin, end, ask_gradient,
                                                                 update);
  }
}

template <ValueFormat kFormat, OptimizerKind kKind>
void push_dim(const TableView& t, size_t begin, size_t end, PushArgs& a) {
  const auto push = [&](auto dim) { push_rows<dim, kFormat, kKind>(t, begin, end, a); };
  // Of the many pairs of format and optimizer only the usual ones are built for the usual dims.
  constexpr bool kUsual = kKind == OptimizerKind::kRowWiseAdagrad;
  if constexpr (kFormat == ValueFormat::kFp32 || (kFormat == ValueFormat::kFp16 && kUsual))
    by_dim<8, 16, 32, 64, 128>(t.layout.dim, push);
  else if constexpr (kUsual)
    by_dim<16, 64, 128>(t.layout.dim, push);
  else
    push(std::integral_constant<uint32_t, 0>());
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
  by_format(t.spec->format, [&](auto f) { push_format<f>(t, begin, end, a); });
}

uint64_t seal(uint64_t secret, const uint64_t* ids, const uint32_t* numbers, size_t n) {
  uint64_t sum = 0;
  for (size_t i = 0; i < n; ++i) sum += numbers[i] == kNoRow ? 0 : seal_of(secret, mix(ids[i]), numbers[i]);
  return sum;
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
  by_dim<8, 16, 32, 64>(f.dim, [&](auto dim) { pool_dim<dim>(f, rows, begin, end, out, width); });
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
  by_dim<8, 16, 32, 64>(last - first, [&](auto columns) {
    unpool_columns<columns>(f, grad, samples, width, rows, first, last);
  });
}

}  // namespace

#define SATRAP_CONCAT2(a, b) a##b
#define SATRAP_CONCAT(a, b) SATRAP_CONCAT2(a, b)
#define SATRAP_STRING2(a) #a
#define SATRAP_STRING(a) SATRAP_STRING2(a)

extern const Kernels SATRAP_CONCAT(kernels_, SATRAP_LEVEL);
const Kernels SATRAP_CONCAT(kernels_, SATRAP_LEVEL) = {
    SATRAP_STRING(SATRAP_LEVEL), pull, push, seal, initialize, encode, decode, pool, unpool};

}  // namespace satrap
