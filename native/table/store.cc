#include "table/store.h"

#include <algorithm>
#include <cstring>
#include <mutex>

#include "table/probe.h"

namespace satrap {
namespace {

// Ids a task works on: long enough to fill the pipeline and pay for the hand-over, short enough to balance.
constexpr size_t kSlice = 2048;

// Bytes of pulled values from which they are written past the cache: who reads them next would not find them
// in it either.
constexpr size_t kPastCache = size_t{4} << 20;

// The seal of a table's hints: of the pairs summed up, and of the generation they were found at.
uint64_t sealed(const Table& table, uint64_t sum, uint64_t generation) {
  return seal_of(table.view().secret, sum ^ mix(generation + 1), 0);
}

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

// Whether a row that was pulled may have been removed and made since. One that was on disk meanwhile is
// itself.
bool may_be_made_again(const Table& table) {
  return table.cold() == nullptr ? table.generation() != 0 : table.erasures() != 0;
}

// A row that was never trained reads as the values it would be made with, in its stored precision.
void read_initial(const Table& table, const PullItem& item, uint32_t i) {
  const TableSpec& spec = table.spec();
  std::vector<char> stored(table.layout().value_bytes);
  float* out = item.values + size_t{i} * spec.dim;
  kernels().initialize(spec, item.ids[i], out, nullptr);
  kernels().encode(spec.format, out, stored.data(), spec.dim);
  kernels().decode(spec.format, stored.data(), out, spec.dim);
  if (item.versions != nullptr) item.versions[i] = 0;
}

// Has the disk begin to read what these ids, at `positions`, need.
void advise(const Table& table, const uint64_t* ids, const uint32_t* positions, size_t n) {
  if (table.cold() == nullptr || n == 0) return;
  std::vector<uint64_t> offsets;
  constexpr size_t kAhead = 4;
  for (size_t k = 0; k < n; ++k) {
    if (k + kAhead < n) {
      const uint64_t next = ids[positions[k + kAhead]];
      table.cold()->prefetch_index(table.partition_of(next), next);
    }
    const uint64_t id = ids[positions[k]];
    table.cold()->locate(table.partition_of(id), id, &offsets);
  }
  table.cold()->advise(offsets);
}

// Values of rows that are not in memory, for who changes nothing: from the cold tier, or those that they
// would begin with.
void read_missing(const Table& table, const PullItem& item, const std::vector<uint32_t>& missing) {
  const TableSpec& spec = table.spec();
  advise(table, item.ids, missing.data(), missing.size());
  std::vector<char> record(table.cold() == nullptr ? 0 : table.cold()->record_bytes());
  uint64_t read = 0;
  for (uint32_t i : missing) {
    uint32_t slot;
    if (table.cold() == nullptr ||
        !table.cold()->read(table.partition_of(item.ids[i]), item.ids[i], record.data(), &slot)) {
      read_initial(table, item, i);
      continue;
    }
    ++read;
    const Row row = table.cold()->row_in(record.data());
    kernels().decode(spec.format, row.values, item.values + size_t{i} * spec.dim, spec.dim);
    if (item.versions != nullptr) item.versions[i] = *row.version;
  }
  if (read != 0) table.cold()->count_lookups(read);
}

// Positions by partition, in the order asked: those of partition p are order[at[p]] to order[at[p + 1] - 1].
struct ByPartition {
  std::vector<uint32_t> at, order;
  template <typename Wanted>
  ByPartition(const Table& table, const uint64_t* ids, size_t n, Wanted&& wanted)
      : at(table.partitions() + 1) {
    std::vector<uint32_t> part(n);
    for (size_t i = 0; i < n; ++i)
      if (wanted(i)) ++at[(part[i] = table.partition_of(ids[i])) + 1];
    for (uint32_t p = 0; p < table.partitions(); ++p) at[p + 1] += at[p];
    std::vector<uint32_t> next(at.begin(), at.end() - 1);
    order.resize(at.back());
    for (size_t i = 0; i < n; ++i)
      if (wanted(i)) order[next[part[i]]++] = static_cast<uint32_t>(i);
  }
};

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

  const std::vector<Slice> slices = slices_of(items, pool_.threads());
  std::vector<std::vector<uint32_t>> missing(slices.size());
  std::vector<std::atomic<uint64_t>> seals(items.size());
  // Bounded tables need to know what was found, also where the caller does not.
  std::vector<std::vector<uint32_t>> numbers(items.size());
  for (size_t k = 0; k < items.size(); ++k)
    if (create && tables_[items[k].table]->bounded()) numbers[k].resize(items[k].n);
  pool_.run(slices.size(), [&](size_t s) {
    const PullItem& item = items[slices[s].item];
    const Slice& slice = slices[s];
    const Table& table = *tables_[item.table];
    missing[s].resize(slice.end - slice.begin);
    uint32_t* const found = numbers[slice.item].empty() ? item.hints : numbers[slice.item].data();
    PullArgs args{item.ids, item.values, item.versions, found, missing[s].data()};
    args.past_cache = item.n * size_t{table.spec().dim} * 4 >= kPastCache;
    kernels().pull(table.view(), slice.begin, slice.end, args);
    missing[s].resize(args.missing_count);
    seals[slices[s].item].fetch_add(args.seal, std::memory_order_relaxed);
    if (!create)
      read_missing(table, item, missing[s]);
    else if (table.cold() != nullptr && !table.cold()->asked(missing[s].size()))
      advise(table, item.ids, missing[s].data(), missing[s].size());
    if (!numbers[slice.item].empty()) missing[s].clear();
  });
  if (create) make_rows(items, slices, missing, seals);
  for (size_t k = 0; k < items.size(); ++k) {
    const PullItem& item = items[k];
    uint64_t seal = seals[k].load(std::memory_order_relaxed);
    if (!numbers[k].empty()) {
      seal += take_rows(item, numbers[k].data());
      if (item.hints != nullptr) std::memcpy(item.hints, numbers[k].data(), 4 * item.n);
    }
    if (item.hints == nullptr) continue;
    const Table& table = *tables_[item.table];
    const uint64_t words[2] = {sealed(table, seal, table.generation()), table.generation()};
    static_assert(sizeof words == 4 * kSealWords);
    std::memcpy(item.hints + item.n, words, sizeof words);
  }
}

uint64_t Store::take_rows(const PullItem& item, uint32_t* numbers) {
  Table& table = *tables_[item.table];
  const uint32_t partitions = table.partitions();
  const auto [at, order] = ByPartition(table, item.ids, item.n, [](size_t) { return true; });
  const size_t tasks =
      item.n < 1024 ? 1 : std::min<size_t>(partitions, static_cast<size_t>(pool_.threads()) * 4);
  table.begin_removals();
  std::atomic<uint64_t> seal{0};
  pool_.run(tasks, [&](size_t task) {
    uint64_t sum = 0;
    const auto first = static_cast<uint32_t>(partitions * task / tasks),
               last = static_cast<uint32_t>(partitions * (task + 1) / tasks);
    std::vector<uint32_t> made;
    for (uint32_t p = first; p < last; ++p) {
      const size_t n = at[p + 1] - at[p];
      if (n == 0) continue;
      const uint32_t* mine = order.data() + at[p];
      made.clear();
      for (size_t k = 0; k < n; ++k)
        if (numbers[mine[k]] == kNoRow) made.push_back(mine[k]);
      table.take(p, item.ids, mine, n, numbers, clock());
      const TableView t = table.view();
      for (uint32_t i : made) {
        if (numbers[i] == kNoRow) {
          read_initial(table, item, i);
          continue;
        }
        const Row row = row_at(t, t.partitions[p], numbers[i]);
        kernels().decode(table.spec().format, row.values, item.values + size_t{i} * table.spec().dim,
                         table.spec().dim);
        if (item.versions != nullptr) item.versions[i] = *row.version;
        sum += seal_of(t.secret, mix(item.ids[i]), numbers[i]);
      }
    }
    seal.fetch_add(sum, std::memory_order_relaxed);
  });
  return seal.load(std::memory_order_relaxed);
}

void Store::make_rows(const std::vector<PullItem>& items, const std::vector<Slice>& slices,
                      const std::vector<std::vector<uint32_t>>& missing,
                      std::vector<std::atomic<uint64_t>>& seals) {
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
    uint64_t seal = 0;
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
        uint32_t number;
        const Row row = table.find_or_create(item.ids[i], &number);
        kernels().decode(spec.format, row.values, item.values + size_t{i} * spec.dim, spec.dim);
        if (item.versions != nullptr) item.versions[i] = *row.version;
        if (item.hints == nullptr) continue;
        item.hints[i] = number;
        seal += seal_of(table.view().secret, mix(item.ids[i]), number);
      }
    }
    seals[group.item].fetch_add(seal, std::memory_order_relaxed);
  });
}

// The hints of each item that lead to its rows, or null: as they came, or in `copies` without those of
// partitions that rows have been removed from since.
std::vector<const uint32_t*> Store::usable_hints(const std::vector<PushItem>& items,
                                                 const std::vector<Slice>& slices,
                                                 std::vector<std::vector<uint32_t>>& copies) {
  std::vector<std::atomic<uint64_t>> seals(items.size());
  pool_.run(slices.size(), [&](size_t s) {
    const PushItem& item = items[slices[s].item];
    if (item.hints == nullptr) return;
    const uint64_t sum = kernels().seal(tables_[item.table]->view().secret, item.ids + slices[s].begin,
                                        item.hints + slices[s].begin, slices[s].end - slices[s].begin);
    seals[slices[s].item].fetch_add(sum, std::memory_order_relaxed);
  });
  std::vector<const uint32_t*> usable(items.size(), nullptr);
  copies.resize(items.size());
  for (size_t k = 0; k < items.size(); ++k) {
    const PushItem& item = items[k];
    if (item.hints == nullptr) continue;
    const Table& table = *tables_[item.table];
    uint64_t words[2];  // seal, generation
    std::memcpy(words, item.hints + item.n, sizeof words);
    if (words[0] != sealed(table, seals[k].load(std::memory_order_relaxed), words[1])) continue;
    usable[k] = item.hints;
    if (words[1] == table.generation()) continue;
    std::vector<char> stale(table.partitions());
    bool any = false;
    for (uint32_t p = 0; p < table.partitions(); ++p) any |= stale[p] = table.removed_at(p) > words[1];
    if (!any) continue;
    copies[k].assign(item.hints, item.hints + item.n);
    for (size_t i = 0; i < item.n; ++i)
      if (stale[table.partition_of(item.ids[i])]) copies[k][i] = kNoRow;
    usable[k] = copies[k].data();
  }
  return usable;
}

// Tells a table whose rows expire by steps which step it is.
void Store::note_push(const PushItem& item, uint64_t step) {
  Table& table = *tables_[item.table];
  if (table.spec().bound.ttl == 0 || table.spec().bound.ttl_seconds) return;
  for (size_t i = 0; i < item.n; ++i) {
    PartitionBound& b = table.bound(table.partition_of(item.ids[i]));
    b.step = std::max(b.step, step);
  }
}

PushResult Store::push(const std::vector<PushItem>& items, float lr_factor, uint64_t step) {
  auto locks = lock_tables<std::unique_lock<std::shared_mutex>>(items, tables_);
  const std::vector<Slice> slices = slices_of(items, pool_.threads());
  std::vector<PushResult> results(slices.size());
  std::vector<std::vector<uint32_t>> copies;
  const std::vector<const uint32_t*> hints = usable_hints(items, slices, copies);
  // Which rows are missing must be known where they may be cold.
  std::vector<std::vector<uint16_t>> own(items.size());
  std::vector<uint16_t*> outcomes(items.size());
  for (size_t k = 0; k < items.size(); ++k) {
    outcomes[k] = items[k].outcomes;
    if (outcomes[k] != nullptr || tables_[items[k].table]->cold() == nullptr) continue;
    own[k].resize(items[k].n);
    outcomes[k] = own[k].data();
  }
  pool_.run(slices.size(), [&](size_t s) {
    const PushItem& item = items[slices[s].item];
    const Table& table = *tables_[item.table];
    PushArgs args{.ids = item.ids,
                  .gradients = item.gradients,
                  .versions = item.versions,
                  .hints = hints[slices[s].item],
                  .lr_factor = lr_factor,
                  .adam_bias = table.adam_bias(),
                  .staleness = results[s].staleness,
                  .removals = may_be_made_again(table) &&
                              (hints[slices[s].item] == nullptr || hints[slices[s].item] != item.hints),
                  .pulled = hints[slices[s].item] == nullptr ? nullptr : item.hints,
                  .outcomes = outcomes[slices[s].item]};
    kernels().push(table.view(), slices[s].begin, slices[s].end, args);
    results[s].applied = args.applied;
    results[s].missing = args.missing;
    results[s].not_finite = args.not_finite;
    results[s].hinted = args.hinted;
  });
  PushResult total;
  for (const PushResult& r : results) {
    total.applied += r.applied;
    total.missing += r.missing;
    total.not_finite += r.not_finite;
    total.not_admitted += r.not_admitted;
    total.hinted += r.hinted;
    for (int b = 0; b < 257; ++b) total.staleness[b] += r.staleness[b];
  }
  for (size_t k = 0; k < items.size(); ++k) {
    const PushItem& item = items[k];
    const Table& table = *tables_[item.table];
    if (table.cold() != nullptr && total.missing != 0) push_cold(item, outcomes[k], lr_factor, &total);
    if (item.outcomes != nullptr && total.missing != 0 && table.spec().bound.sightings != 0)
      for (size_t i = 0; i < item.n; ++i)
        if (item.outcomes[i] == kOutcomeMissing && table.awaits_admission(item.ids[i])) {
          item.outcomes[i] = kOutcomeNotAdmitted;
          ++total.not_admitted;
        }
    note_push(item, step);
  }
  return total;
}

void Store::push_cold(const PushItem& item, uint16_t* outcomes, float lr_factor, PushResult* result) {
  Table& table = *tables_[item.table];
  std::vector<uint32_t> missing;
  for (size_t i = 0; i < item.n; ++i)
    if (outcomes[i] == kOutcomeMissing) missing.push_back(static_cast<uint32_t>(i));
  if (missing.empty() || table.cold()->rows() == 0) return;
  advise(table, item.ids, missing.data(), missing.size());
  const auto [at, order] =
      ByPartition(table, item.ids, item.n, [&](size_t i) { return outcomes[i] == kOutcomeMissing; });
  std::vector<uint32_t> numbers(item.n, kNoRow);
  table.begin_removals();
  pool_.run(table.partitions(), [&](size_t p) {
    if (at[p] == at[p + 1]) return;
    table.bring_back(static_cast<uint32_t>(p), item.ids, {order.begin() + at[p], order.begin() + at[p + 1]},
                     numbers.data());
  });
  const size_t dim = table.spec().dim;
  std::vector<uint64_t> ids;
  std::vector<float> gradients;
  std::vector<uint8_t> versions;
  std::vector<uint32_t> back;
  for (uint32_t i : missing) {
    if (numbers[i] == kNoRow) continue;
    back.push_back(i);
    ids.push_back(item.ids[i]);
    gradients.insert(gradients.end(), item.gradients + i * dim, item.gradients + (i + 1) * dim);
    if (item.versions != nullptr) versions.push_back(item.versions[i]);
  }
  std::vector<uint16_t> found(back.size());
  PushArgs args{.ids = ids.data(),
                .gradients = gradients.data(),
                .versions = item.versions == nullptr ? nullptr : versions.data(),
                .hints = nullptr,
                .lr_factor = lr_factor,
                .adam_bias = table.adam_bias(),
                .staleness = result->staleness,
                .removals = may_be_made_again(table),
                .outcomes = found.data()};
  kernels().push(table.view(), 0, back.size(), args);
  for (size_t k = 0; k < back.size(); ++k) outcomes[back[k]] = found[k];
  result->applied += args.applied;
  result->not_finite += args.not_finite;
  result->missing -= back.size() - args.missing;
}

void Store::prefetch(uint32_t index, const uint64_t* ids, size_t n) const {
  Table& table = *tables_[index];
  if (table.cold() == nullptr) return;
  std::vector<uint64_t> offsets;
  constexpr size_t kAtOnce = 1024, kAhead = 8;  // of one turn of the lock
  for (size_t begin = 0; begin < n; begin += kAtOnce) {
    const size_t end = std::min(n, begin + kAtOnce);
    std::shared_lock lock(table.mutex());
    if (table.cold()->rows() == 0) return;
    for (size_t i = begin; i < end; ++i) {
      if (i + kAhead < end) table.prefetch(ids[i + kAhead]);
      if (!table.find(ids[i])) table.cold()->locate(table.partition_of(ids[i]), ids[i], &offsets);
    }
    lock.unlock();
    table.cold()->advise_ahead(offsets);
    offsets.clear();
  }
}

void Store::import_rows(uint32_t index, const std::vector<RowArrays>& blocks) {
  Table& table = *tables_[index];
  struct Run {
    uint32_t part;
    RowsOfPartition rows;
  };
  std::vector<Run> runs;
  std::vector<bool> seen(table.partitions());
  bool apart = false;  // rows of one partition do not all lie one behind the other
  for (size_t k = 0; k < blocks.size() && !apart; ++k)
    for (size_t i = 0; i < blocks[k].n && !apart; ++i) {
      const uint32_t part = table.partition_of(blocks[k].ids[i]);
      if (i == 0 || runs.back().part != part) {
        apart = seen[part];
        seen[part] = true;
        runs.push_back({part, {&blocks[k], i, 0}});
      }
      ++runs.back().rows.n;
    }
  std::unique_lock lock(table.mutex());
  if (table.bounded()) table.begin_removals();
  if (!apart) {
    pool_.run(runs.size(), [&](size_t r) { table.import_rows(runs[r].part, runs[r].rows); });
    return;
  }
  for (const RowArrays& b : blocks) {
    const auto [at, order] = ByPartition(table, b.ids, b.n, [](size_t) { return true; });
    const size_t tasks = b.n < 1024 ? 1 : table.partitions();
    pool_.run(tasks, [&](size_t task) {
      const size_t last = tasks == 1 ? table.partitions() : task + 1;
      for (size_t p = task; p < last; ++p)
        if (at[p] != at[p + 1])
          table.import_rows(static_cast<uint32_t>(p), {&b, 0, at[p + 1] - at[p], order.data() + at[p]});
    });
  }
}

}  // namespace satrap
