// Rows for many ids at once, with nothing handed back: see Store::fill.
#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

#include "table/store.h"

namespace satrap {
namespace {

constexpr size_t kAhead = 8;         // ids whose index is asked for before it is their turn
constexpr size_t kTasksAThread = 4;  // partitions differ a little: several tasks a thread even that out

// Positions of ids by partition, in their order, and where each partition's begin.
struct ByPartition {
  std::vector<uint32_t> order;
  std::vector<size_t> begin;
};

ByPartition by_partition(const Table& table, const uint64_t* ids, size_t n, ThreadPool& pool) {
  const size_t parts = table.partitions(), slices = static_cast<size_t>(pool.threads());
  std::vector<std::vector<size_t>> next(slices, std::vector<size_t>(parts));
  auto slice = [&](size_t s) { return n * s / slices; };
  pool.run(slices, [&](size_t s) {
    for (size_t i = slice(s); i < slice(s + 1); ++i) ++next[s][table.partition_of(ids[i])];
  });
  ByPartition out{std::vector<uint32_t>(n), std::vector<size_t>(parts + 1)};
  size_t at = 0;
  for (size_t p = 0; p < parts; ++p) {
    out.begin[p] = at;
    for (auto& counts : next) {
      const size_t count = counts[p];
      counts[p] = at;
      at += count;
    }
  }
  out.begin[parts] = n;
  pool.run(slices, [&](size_t s) {
    for (size_t i = slice(s); i < slice(s + 1); ++i)
      out.order[next[s][table.partition_of(ids[i])]++] = static_cast<uint32_t>(i);
  });
  return out;
}

}  // namespace

uint64_t Store::fill(uint32_t index, const uint64_t* ids, size_t n) {
  Table& table = *tables_[index];
  std::unique_lock lock(table.mutex());
  if (table.bounded()) table.begin_removals();
  const ByPartition work = by_partition(table, ids, n, pool_);
  const size_t parts = table.partitions(),
               tasks = std::min(parts, static_cast<size_t>(pool_.threads()) * kTasksAThread);
  std::atomic<uint64_t> made{0};
  pool_.run(tasks, [&](size_t task) {
    uint64_t mine = 0;
    for (size_t p = parts * task / tasks; p < parts * (task + 1) / tasks; ++p) {
      const auto part = static_cast<uint32_t>(p);
      const uint64_t had = table.rows(part);
      uint64_t gone = 0;
      for (size_t k = work.begin[p]; k < work.begin[p + 1]; ++k) {
        if (k + kAhead < work.begin[p + 1]) table.prefetch(ids[work.order[k + kAhead]]);
        const uint64_t id = ids[work.order[k]];
        if (table.bounded() && !table.find(id)) {
          if (table.is_cold(id)) continue;
          const uint64_t before = table.rows(part);
          table.make_room(part);
          gone += before - table.rows(part);
        }
        table.find_or_create(id);
      }
      mine += table.rows(part) + gone - had;
    }
    made.fetch_add(mine, std::memory_order_relaxed);
  });
  return made.load(std::memory_order_relaxed);
}

}  // namespace satrap
