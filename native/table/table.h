// One table: partitions of rows by id, with one lock.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <shared_mutex>
#include <vector>

#include "base/arena.h"
#include "table/spec.h"
#include "table/view.h"

namespace satrap {

struct TableSize {
  uint64_t rows = 0, value_bytes = 0, state_bytes = 0, overhead_bytes = 0;
};

// Rows by 64-bit id. Not thread-safe by itself: hold `mutex()` shared to read, exclusive to change anything.
// Row memory never moves while a block is full-size, but callers must not keep row pointers beyond their
// lock. Every method that can run out of memory throws std::bad_alloc and leaves the table as it was.
class Table {
 public:
  Table(const TableSpec& spec, int partition_bits, Arena* arena);

  const TableSpec& spec() const { return spec_; }
  const RowLayout& layout() const { return layout_; }
  TableView view() const;
  std::shared_mutex& mutex() { return mutex_; }
  const float* adam_bias() const { return adam_bias_.empty() ? nullptr : adam_bias_.data(); }

  // The row of an id, made from the initializer if it is not there. Different partitions may be used from
  // different threads at once. `created`, if given, says which.
  char* find_or_create(uint64_t id, uint32_t* number = nullptr);
  // The same with the values and state of a new row left as they are, for the caller to fill.
  char* find_or_insert(uint64_t id, bool* inserted, uint32_t* number = nullptr);
  // Makes the index large enough for this many rows in all. Rows that come in the order of the mixed id need
  // it: they would fill a growing index from its one end, each probing past those before it.
  // `wanted`: only the partitions for which it is true, the share of each as if all were there.
  void reserve_rows(uint64_t rows, const std::vector<bool>* wanted = nullptr);
  char* find(uint64_t id) const;
  // Asks for the index of an id that will soon be looked for.
  void prefetch(uint64_t id) const;
  // True if the row was there.
  bool erase(uint64_t id);
  void clear();

  // Row numbers found while this has one value lead to the same rows or to none: it changes when rows are
  // removed, and with them the meaning of their numbers.
  uint32_t generation() const { return generation_; }

  uint32_t partitions() const { return static_cast<uint32_t>(parts_.size()); }
  uint32_t partition_of(uint64_t id) const;
  uint64_t rows(uint32_t partition) const { return parts_[partition].count; }
  // Calls visit(id, row) for every row of a partition in ascending order of the mixed id: an order that does
  // not depend on history, and that concatenated over partitions is the same for any number of them.
  void visit_ordered(uint32_t partition,
                     const std::function<void(uint64_t id, const char* row)>& visit) const;

  TableSize size() const;

 private:
  struct Partition {
    BlockList chunk_list, row_list;
    uint32_t chunks = 0;
    uint32_t next_row = 0;  // row numbers below this have been given out
    uint64_t count = 0;
    std::vector<uint32_t> free_rows;
  };
  struct Entry {
    uint64_t h;
    uint32_t row;
  };

  void publish(uint32_t partition);
  void reserve(uint32_t partition, BlockList* list, size_t n);
  void collect(uint32_t partition, std::vector<Entry>* out) const;
  void grow_index(uint32_t partition, uint32_t chunks);
  void link(uint32_t partition, uint64_t h, uint32_t row);

  TableSpec spec_;
  RowLayout layout_;
  int partition_bits_;
  int row_shift_;
  uint32_t generation_ = 0;
  std::vector<Partition> parts_;
  std::vector<PartitionView> views_;
  std::vector<float> adam_bias_;
  mutable std::shared_mutex mutex_;
};

}  // namespace satrap
