// All tables of a process: batch calls over several tables at once, shared out to threads.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "table/table.h"

namespace satrap {

struct PullItem {
  uint32_t table;
  const uint64_t* ids;
  size_t n;
  float* values;      // [n, D]
  uint8_t* versions;  // [n]
  uint32_t* hints;  // [n + 1] where the rows are, for the push to come: numbers, and their table's generation
};

struct PushItem {
  uint32_t table;
  const uint64_t* ids;  // distinct
  size_t n;
  const float* gradients;        // [n, D]
  const uint8_t* versions;       // [n] or null
  const uint32_t* hints;         // [n + 1] as pulled, or null; only ever saves a search
  uint16_t* outcomes = nullptr;  // [n] or null, see PushArgs
};

struct PushResult {
  size_t applied = 0, missing = 0, not_finite = 0;
  int64_t staleness[257] = {};
};

// Thread-safe. A call locks the tables it names, in their order, for its whole length. Results do not depend
// on the number of threads.
class Store {
 public:
  Store(const std::vector<TableSpec>& specs, int partition_bits, int threads);

  void pull(const std::vector<PullItem>& items, bool create);
  PushResult push(const std::vector<PushItem>& items, float lr_factor);

  Table& table(uint32_t i) { return *tables_[i]; }
  uint32_t tables() const { return static_cast<uint32_t>(tables_.size()); }
  ThreadPool& pool() { return pool_; }

 private:
  Arena arena_;
  std::vector<std::unique_ptr<Table>> tables_;
  ThreadPool pool_;
};

}  // namespace satrap
