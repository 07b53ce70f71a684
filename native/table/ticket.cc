#include "table/ticket.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/hash.h"

namespace satrap {
namespace {

// Finds each id's place among the unique ones by a scratch hash table that stays in the cache.
class Deduplicator {
 public:
  void start(size_t n) {
    const size_t slots = std::bit_ceil(std::max<size_t>(2 * n, 16));
    if (slots_.size() < slots) slots_.resize(slots);
    std::fill_n(slots_.begin(), slots, 0u);
    mask_ = slots - 1;
  }

  void add(const uint64_t* ids, size_t n, std::vector<uint64_t>* unique, int32_t* positions) {
    constexpr size_t kAhead = 8;
    for (size_t i = 0; i < n; ++i) {
      if (i + kAhead < n) __builtin_prefetch(&slots_[mix(ids[i + kAhead]) & mask_]);
      const uint64_t id = ids[i];
      for (size_t s = mix(id) & mask_;; s = (s + 1) & mask_) {
        const uint32_t found = slots_[s];
        if (found == 0) {
          unique->push_back(id);
          slots_[s] = static_cast<uint32_t>(unique->size());
          positions[i] = static_cast<int32_t>(unique->size() - 1);
          break;
        }
        if ((*unique)[found - 1] == id) {
          positions[i] = static_cast<int32_t>(found - 1);
          break;
        }
      }
    }
  }

 private:
  std::vector<uint32_t> slots_;  // 1 + place among the unique ids; 0: free
  size_t mask_ = 0;
};

}  // namespace

Ticket::Ticket(std::vector<TicketFeature> features, uint32_t tables, size_t samples, ThreadPool& pool)
    : features_(std::move(features)),
      samples_(samples),
      unique_(tables),
      positions_(features_.size()),
      of_table_(tables) {
  for (uint32_t f = 0; f < features_.size(); ++f) {
    of_table_[features_[f].table].push_back(f);
    ids_ += features_[f].n;
  }
  pool.run(tables, [&](size_t t) {
    size_t n = 0;
    for (uint32_t f : of_table_[t]) n += features_[f].n;
    if (n == 0) return;
    thread_local Deduplicator dedup;
    dedup.start(n);
    unique_[t].reserve(std::min<size_t>(n, 1024));
    for (uint32_t f : of_table_[t]) {
      positions_[f].resize(features_[f].n);
      dedup.add(features_[f].ids, features_[f].n, &unique_[t], positions_[f].data());
    }
  });
}

FeatureView Ticket::view(size_t feature) const {
  const TicketFeature& f = features_[feature];
  return {positions_[feature].data(), f.offsets, f.weights, f.pooling, f.dim, f.column};
}

void Ticket::pool(const std::vector<const float*>& rows, float* out, size_t width,
                  const std::vector<float*>& sequences, const std::vector<uint8_t*>& masks,
                  ThreadPool& pool) const {
  constexpr size_t kBlock = 256;  // samples of one task: its part of the output stays in the cache
  pool.run((samples_ + kBlock - 1) / kBlock, [&](size_t block) {
    const size_t begin = block * kBlock, end = std::min(samples_, begin + kBlock);
    size_t sequence = 0;
    for (size_t k = 0; k < features_.size(); ++k) {
      const TicketFeature& f = features_[k];
      const float* table_rows = rows[f.table];
      if (f.max_length == 0) {
        kernels().pool(view(k), table_rows, begin, end, out, width);
        continue;
      }
      float* values = sequences[sequence];
      uint8_t* mask = masks[sequence++];
      for (size_t b = begin; b < end; ++b) {
        const int64_t first = f.offsets ? f.offsets[b] : static_cast<int64_t>(b);
        const int64_t last = f.offsets ? f.offsets[b + 1] : first + 1;
        const size_t length = std::min<size_t>(static_cast<size_t>(last - first), f.max_length);
        float* o = values + b * f.max_length * f.dim;
        for (size_t j = 0; j < length; ++j)
          std::memcpy(
              o + j * f.dim,
              table_rows + static_cast<size_t>(positions_[k][first + static_cast<int64_t>(j)]) * f.dim,
              4 * size_t{f.dim});
        std::memset(o + length * f.dim, 0, (f.max_length - length) * f.dim * 4);
        for (size_t j = 0; j < f.max_length; ++j) mask[b * f.max_length + j] = j < length;
      }
    }
  });
}

void Ticket::unpool(const float* grad, size_t width, const std::vector<const float*>& sequences,
                    const std::vector<float*>& rows, ThreadPool& pool) const {
  // One task a table; a table with more than its share of the work is cut by columns, which leaves the order
  // of each sum as it is.
  struct Task {
    uint32_t table, first, last;
  };
  std::vector<Task> tasks;
  const size_t share = ids_ / static_cast<size_t>(pool.threads()) + 1;
  for (uint32_t t = 0; t < of_table_.size(); ++t) {
    if (of_table_[t].empty() || unique_[t].empty()) continue;
    size_t n = 0;
    for (uint32_t f : of_table_[t]) n += features_[f].n;
    const uint32_t dim = features_[of_table_[t][0]].dim;
    const uint32_t cuts =
        n > share / 2 && pool.threads() > 1
            ? std::min<uint32_t>(static_cast<uint32_t>(pool.threads()), std::max(1u, dim / 8))
            : 1;
    const uint32_t step = ((dim + cuts - 1) / cuts + 7) & ~7u;
    for (uint32_t c = 0; c < dim; c += step) tasks.push_back({t, c, std::min(dim, c + step)});
  }
  pool.run(tasks.size(), [&](size_t k) {
    const Task& task = tasks[k];
    float* out = rows[task.table];
    const uint32_t dim = features_[of_table_[task.table][0]].dim, first = task.first, last = task.last;
    if (first == 0 && last == dim) {
      std::memset(out, 0, unique_[task.table].size() * dim * 4);
    } else {
      for (size_t u = 0; u < unique_[task.table].size(); ++u)
        std::fill_n(out + u * dim + first, last - first, 0.0f);
    }
    size_t sequence = 0;
    for (uint32_t f = 0; f < features_.size(); ++f) {
      const TicketFeature& feature = features_[f];
      const size_t own_sequence = sequence;
      if (feature.max_length != 0) ++sequence;
      if (feature.table != task.table) continue;
      if (feature.max_length == 0) {
        if (grad != nullptr) kernels().unpool(view(f), grad, samples_, width, out, first, last);
        continue;
      }
      const float* g = sequences[own_sequence];
      if (g == nullptr) continue;
      for (size_t b = 0; b < samples_; ++b) {
        const int64_t k0 = feature.offsets ? feature.offsets[b] : static_cast<int64_t>(b);
        const int64_t k1 = feature.offsets ? feature.offsets[b + 1] : k0 + 1;
        const size_t length = std::min<size_t>(static_cast<size_t>(k1 - k0), feature.max_length);
        for (size_t j = 0; j < length; ++j) {
          const float* from = g + (b * feature.max_length + j) * dim;
          float* to = out + static_cast<size_t>(positions_[f][k0 + static_cast<int64_t>(j)]) * dim;
          for (uint32_t c = first; c < last; ++c) to[c] += from[c];
        }
      }
    }
  });
}

bool has_duplicates(const uint64_t* ids, size_t n) {
  thread_local std::vector<uint32_t> slots;
  const size_t count = std::bit_ceil(std::max<size_t>(2 * n, 16)), mask = count - 1;
  if (slots.size() < count) slots.resize(count);
  std::fill_n(slots.begin(), count, 0u);
  for (size_t i = 0; i < n; ++i) {
    size_t s = mix(ids[i]) & mask;
    for (; slots[s] != 0; s = (s + 1) & mask)
      if (ids[slots[s] - 1] == ids[i]) return true;
    slots[s] = static_cast<uint32_t>(i + 1);
  }
  return false;
}

}  // namespace satrap
