// All tables of a process: batch calls over several tables at once, shared out to threads.
#pragma once
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "table/table.h"

namespace satrap {

// A hint is a row number, and rows do not say whose they are. So the numbers of a pull are sealed: 64 bits of
// a keyed sum over its (id, number) pairs and the table's generation, which stands behind the seal. A push
// uses hints only if the seal is that of its own ids and their numbers under that generation, and only those
// of partitions where no row has been removed since; of other ids, of another table or made up, they are left
// aside.
constexpr size_t kSealWords = 4;

struct PullItem {
  uint32_t table;
  const uint64_t* ids;
  size_t n;
  float* values;      // [n, D]
  uint8_t* versions;  // [n], or null: not wanted
  // [n + kSealWords] where the rows are, for the push to come: numbers, seal, generation; or null: not wanted
  uint32_t* hints;
};

struct PushItem {
  uint32_t table;
  const uint64_t* ids;  // distinct
  size_t n;
  const float* gradients;        // [n, D]
  const uint8_t* versions;       // [n] or null
  const uint32_t* hints;         // [n + kSealWords] as pulled, or null; only ever saves a search
  uint16_t* outcomes = nullptr;  // [n] or null, see PushArgs
};

struct PushResult {
  size_t applied = 0, missing = 0, not_finite = 0;
  // Of the missing: those that have not been seen often enough for a row. Only where there are outcomes.
  size_t not_admitted = 0;
  size_t hinted = 0;  // rows whose search a hint has saved
  int64_t staleness[257] = {};
};

// A part of one item's ids, the work of one task.
struct Slice {
  size_t item, begin, end;
};

// Thread-safe. A call locks the tables it names, in their order, for its whole length. Results do not depend
// on the number of threads.
class Store {
 public:
  Store(const std::vector<TableSpec>& specs, int partition_bits, int threads);

  void pull(const std::vector<PullItem>& items, bool create);
  // `step`: which one it is; the time that rows which expire by steps go by.
  PushResult push(const std::vector<PushItem>& items, float lr_factor, uint64_t step = 0);
  // Adds or replaces rows, whole, one block after another. Their versions start at 0 or are in their state.
  // Where a partition is full, others go. Several partitions are filled at once; fewer than 2^32 rows a
  // block.
  void import_rows(uint32_t table, const std::vector<RowArrays>& blocks);
  // Makes rows of those of n ids (fewer than 2^32) that have none, from the initializer, and hands nothing
  // back; returns how many. Where a partition is full, others go; nobody's sightings are asked for. What it
  // throws leaves the rows that were made until then.
  uint64_t fill(uint32_t table, const uint64_t* ids, size_t n);
  // Makes the capacity of a table one of the memory, with the other rows in `folder`: see Table::open_cold.
  void open_cold(uint32_t table, const std::string& folder, const std::string& name) {
    tables_[table]->open_cold(folder, name);
  }
  // Has the disk begin to read the rows of ids that will soon be pulled, and does not wait: none is moved.
  void prefetch(uint32_t table, const uint64_t* ids, size_t n) const;
  // The time that rows which expire by seconds go by, from the next pull on.
  void set_clock(uint64_t seconds) { seconds_.store(seconds, std::memory_order_relaxed); }
  uint64_t clock() const { return seconds_.load(std::memory_order_relaxed); }

  // Bytes of all tables' blocks, and the most there may be: beyond it a call throws std::bad_alloc.
  size_t held() const { return arena_.held(); }
  void set_limit(size_t bytes) { arena_.set_limit(bytes); }

  Table& table(uint32_t i) { return *tables_[i]; }
  uint32_t tables() const { return static_cast<uint32_t>(tables_.size()); }
  ThreadPool& pool() { return pool_; }

 private:
  // The rows that a pull found missing, by slice.
  void make_rows(const std::vector<PullItem>& items, const std::vector<Slice>& slices,
                 const std::vector<std::vector<uint32_t>>& missing,
                 std::vector<std::atomic<uint64_t>>& seals);
  // What a training pull means for a bounded table: see Table::take. `numbers` [n] as found.
  uint64_t take_rows(const PullItem& item, uint32_t* numbers);
  // The gradients of rows that are cold, which the first pass over an item has left with the outcome of the
  // missing.
  void push_cold(const PushItem& item, uint16_t* outcomes, float lr_factor, PushResult* result);
  std::vector<const uint32_t*> usable_hints(const std::vector<PushItem>& items,
                                            const std::vector<Slice>& slices,
                                            std::vector<std::vector<uint32_t>>& copies);
  void note_push(const PushItem& item, uint64_t step);

  Arena arena_;
  std::vector<std::unique_ptr<Table>> tables_;
  ThreadPool pool_;
  std::atomic<uint64_t> seconds_{0};
};

}  // namespace satrap
