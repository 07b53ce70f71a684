#include "table/store.h"

#include <algorithm>
#include <cstring>
#include <mutex>

namespace satrap {
namespace {

// Ids a task works on: long enough to fill the pipeline and pay for the hand-over, short enough to balance.
constexpr size_t kSlice = 2048;

struct Slice {
  size_t item, begin, end;
};

template <typename Item>
std::vector<Slice> slices_of(const std::vector<Item>& items, int threads) {
  size_t total = 0;
  for (const Item& i : items) total += i.n;
  const size_t length = std::max(kSlice, total / (static_cast<size_t>(threads) * 4) + 1);
  std::vector<Slice> out;
  for (size_t k = 0; k < items.size(); ++k)
    for (size_t b = 0; b < items[k].n; b += length) out.push_back({k, b, std::min(items[k].n, b + length)});
  return out;
}

// Locks the tables of the items in table order, so that two calls can never wait for each other.
template <typename Lock, typename Item>
std::vector<Lock> lock_tables(const std::vector<Item>& items,
                              const std::vector<std::unique_ptr<Table>>& tables) {
  std::vector<uint32_t> order;
  for (const Item& i : items) order.push_back(i.table);
  std::sort(order.begin(), order.end());
  order.erase(std::unique(order.begin(), order.end()), order.end());
  std::vector<Lock> locks;
  for (uint32_t t : order) locks.emplace_back(tables[t]->mutex());
  return locks;
}

}  // namespace

Store::Store(const std::vector<TableSpec>& specs, int partition_bits, int threads) : pool_(threads) {
  for (const TableSpec& s : specs) tables_.push_back(std::make_unique<Table>(s, partition_bits, &arena_));
}

void Store::pull(const std::vector<PullItem>& items, bool create) {
  std::vector<std::unique_lock<std::shared_mutex>> exclusive;
  std::vector<std::shared_lock<std::shared_mutex>> shared;
  if (create)
    exclusive = lock_tables<std::unique_lock<std::shared_mutex>>(items, tables_);
  else
    shared = lock_tables<std::shared_lock<std::shared_mutex>>(items, tables_);

  for (const PullItem& i : items) i.hints[i.n] = tables_[i.table]->generation();
  const std::vector<Slice> slices = slices_of(items, pool_.threads());
  std::vector<std::vector<uint32_t>> missing(slices.size());
  pool_.run(slices.size(), [&](size_t s) {
    const PullItem& item = items[slices[s].item];
    const Slice& slice = slices[s];
    const Table& table = *tables_[item.table];
    missing[s].resize(slice.end - slice.begin);
    PullArgs args{item.ids, item.values, item.versions, item.hints, missing[s].data()};
    kernels().pull(table.view(), slice.begin, slice.end, args);
    missing[s].resize(args.missing_count);
    if (create) return;
    // A row that was never trained reads as the values it would be made with, in its stored precision.
    const TableSpec& spec = table.spec();
    std::vector<char> stored(table.layout().value_bytes);
    for (uint32_t i : missing[s]) {
      item.hints[i] = 0xFFFFFFFFu;
      float* out = item.values + size_t{i} * spec.dim;
      kernels().initialize(spec, item.ids[i], out, nullptr);
      kernels().encode(spec.format, out, stored.data(), spec.dim);
      kernels().decode(spec.format, stored.data(), out, spec.dim);
      if (item.versions != nullptr) item.versions[i] = 0;
    }
  });
  if (!create) return;

  // New rows: each group of partitions is made by one task, so partitions need no locks of their own.
  std::vector<std::vector<size_t>> of_item(items.size());
  for (size_t s = 0; s < slices.size(); ++s)
    if (!missing[s].empty()) of_item[slices[s].item].push_back(s);
  struct Group {
    size_t item;
    uint32_t part, parts;
  };
  std::vector<Group> groups;
  for (size_t k = 0; k < items.size(); ++k) {
    size_t rows = 0;
    for (size_t s : of_item[k]) rows += missing[s].size();
    if (rows == 0) continue;
    const auto parts = rows < 1024 ? 1u
                                   : std::min<uint32_t>(static_cast<uint32_t>(pool_.threads()),
                                                        tables_[items[k].table]->partitions());
    for (uint32_t p = 0; p < parts; ++p) groups.push_back({k, p, parts});
  }
  pool_.run(groups.size(), [&](size_t g) {
    const Group& group = groups[g];
    const PullItem& item = items[group.item];
    Table& table = *tables_[item.table];
    const TableSpec& spec = table.spec();
    for (size_t s : of_item[group.item]) {
      for (size_t k = 0; k < missing[s].size(); ++k) {
        constexpr size_t kAhead = 8;
        // Not even a look at the index of other groups' partitions: their threads may be moving it.
        auto own = [&](uint64_t id) {
          return group.parts == 1 || table.partition_of(id) % group.parts == group.part;
        };
        if (k + kAhead < missing[s].size() && own(item.ids[missing[s][k + kAhead]]))
          table.prefetch(item.ids[missing[s][k + kAhead]]);
        const uint32_t i = missing[s][k];
        if (!own(item.ids[i])) continue;
        const char* row = table.find_or_create(item.ids[i], &item.hints[i]);
        kernels().decode(spec.format, row + RowLayout::kHeader, item.values + size_t{i} * spec.dim, spec.dim);
        if (item.versions != nullptr) item.versions[i] = static_cast<uint8_t>(row[0]);
      }
    }
  });
}

PushResult Store::push(const std::vector<PushItem>& items, float lr_factor) {
  auto locks = lock_tables<std::unique_lock<std::shared_mutex>>(items, tables_);
  const std::vector<Slice> slices = slices_of(items, pool_.threads());
  std::vector<PushResult> results(slices.size());
  pool_.run(slices.size(), [&](size_t s) {
    const PushItem& item = items[slices[s].item];
    const Table& table = *tables_[item.table];
    const bool hinted = item.hints != nullptr && item.hints[item.n] == table.generation();
    PushArgs args{.ids = item.ids,
                  .gradients = item.gradients,
                  .versions = item.versions,
                  .hints = hinted ? item.hints : nullptr,
                  .lr_factor = lr_factor,
                  .adam_bias = table.adam_bias(),
                  .staleness = results[s].staleness,
                  .outcomes = item.outcomes};
    kernels().push(table.view(), slices[s].begin, slices[s].end, args);
    results[s].applied = args.applied;
    results[s].missing = args.missing;
    results[s].not_finite = args.not_finite;
  });
  PushResult total;
  for (const PushResult& r : results) {
    total.applied += r.applied;
    total.missing += r.missing;
    total.not_finite += r.not_finite;
    for (int b = 0; b < 257; ++b) total.staleness[b] += r.staleness[b];
  }
  return total;
}

}  // namespace satrap
