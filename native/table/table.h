// One table: partitions of rows by id, with one lock.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <shared_mutex>
#include <string>
#include <vector>

#include "base/arena.h"
#include "table/bounds.h"
#include "table/cold.h"
#include "table/cut.h"
#include "table/spec.h"
#include "table/stash.h"
#include "table/view.h"

namespace satrap {

struct TableSize {
  uint64_t rows = 0, value_bytes = 0, state_bytes = 0, overhead_bytes = 0;
};

// Rows of a table as they are exported and imported: values [n, stored bytes], state [n, exported words],
// marks [n, exported marks] or null: they count as just made.
struct RowArrays {
  const uint64_t* ids;
  size_t n;
  const uint8_t* values;
  const float* state;
  const uint8_t* marks = nullptr;
};

// Those of them that are of one partition: n at the positions `order` names, or one behind the other from
// `begin` on.
struct RowsOfPartition {
  const RowArrays* of;
  size_t begin, n;
  const uint32_t* order = nullptr;
  size_t at(size_t i) const { return order == nullptr ? begin + i : order[i]; }
  RowsOfPartition from(size_t i, size_t count) const {
    return {of, begin + i, count, order == nullptr ? nullptr : order + i};
  }
};

// Rows by 64-bit id. Not thread-safe by itself: hold `mutex()` shared to read, exclusive to change anything.
// Row memory never moves while a block is full-size, but callers must not keep a Row beyond their lock. Every
// method that can run out of memory throws std::bad_alloc and leaves the table as it was.
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
  Row find_or_create(uint64_t id, uint32_t* number = nullptr);
  // The same with the values and state of a new row left as they are, for the caller to fill; its version is
  // 0.
  Row find_or_insert(uint64_t id, bool* inserted, uint32_t* number = nullptr);
  // Adds or replaces rows of a partition, whole; where it is full, others go. Different partitions may be
  // used from different threads at once. Of a bounded table: call `begin_removals` once before. What it
  // throws leaves the rows that were imported until then.
  void import_rows(uint32_t partition, const RowsOfPartition& rows);
  // Makes the index large enough for this many rows in all. Rows that come in the order of the mixed id need
  // it: they would crowd a growing index at its one end, and most of them lie in the stash until it has
  // grown. `wanted`: only the partitions for which it is true, the share of each as if all were there.
  void reserve_rows(uint64_t rows, const std::vector<bool>* wanted = nullptr);
  // In memory.
  Row find(uint64_t id) const;
  // Wherever it is; a cold row is read into `record`, and lives as long as that. Throws ColdError.
  Row find_anywhere(uint64_t id, std::vector<char>* record) const;
  // Asks for the index of an id that will soon be looked for.
  void prefetch(uint64_t id) const;
  // True if the row was there.
  bool erase(uint64_t id);
  void clear();

  // Rises before rows are removed, and with them the meaning of their numbers. A row number found at
  // generation g leads to the same row as long as its partition's `removed_at` is not above g.
  uint64_t generation() const { return generation_; }
  void begin_removals() { ++generation_; }
  // Rows erased so far, and times that all were.
  uint64_t erasures() const { return erasures_; }
  uint64_t removed_at(uint32_t partition) const { return parts_[partition].removed_at; }

  // ---- bounded tables: see bounds.h. For each partition at once from one thread, different ones from
  // different ones; call `begin_removals` once before.

  bool bounded() const { return !bounds_.empty(); }
  // Rows that a partition may hold.
  uint64_t share(uint32_t partition) const;
  // What a training pull means for a partition: `positions` are those of its ids, in the order asked, and
  // `numbers[position]` is the row found, or kNoRow; there the number of a row made is entered, and kNoRow
  // stays for an id that gets none. Rows of this pull are never removed for each other. `seconds`: the time.
  void take(uint32_t partition, const uint64_t* ids, const uint32_t* positions, size_t n, uint32_t* numbers,
            uint64_t seconds);
  // The n rows that are to go first, coldest first, without the `spared` (row numbers); fewer where there are
  // no more.
  std::vector<Victim> victims(uint32_t partition, uint64_t n, const std::vector<uint32_t>& spared = {}) const;
  // Hands rows to the sink, if there is one, and removes them.
  void remove(uint32_t partition, const std::vector<Victim>& rows);
  void set_sink(EvictionSink sink) { sink_ = std::move(sink); }
  // Makes room for an import of a row that is not there yet, where its partition is full.
  void make_room(uint32_t partition);
  PartitionBound& bound(uint32_t partition) { return bounds_[partition]; }
  const PartitionBound& bound(uint32_t partition) const { return bounds_[partition]; }
  BoundCounts bound_counts() const;
  // Whether an id without a row lacks it because it has not been seen often enough.
  bool awaits_admission(uint64_t id) const;
  // The marks of a row as files hold them: recency as an age.
  void export_marks(uint32_t partition, const Row& row, uint8_t* out) const;
  void import_marks(uint32_t partition, const Row& row, const uint8_t* marks);
  // All else that a partition keeps. False where it is of another partition or another count of them, and is
  // left.
  std::string export_bound(uint32_t partition) const;
  bool import_bound(uint32_t partition, const char* state, size_t bytes);
  // Has every partition keep the ids of rows that it removes by its rules, until they are taken.
  void keep_removals() { keeps_removals_ = true; }
  // Those since the last call, and what `export_bound` gives, for `advance_bound`.
  Removals take_removals(uint32_t partition, std::string* bound);
  // The partition goes on to a later state that `take_removals` gave: the marks of its rows become what they
  // had become by then of rows that were not used. False as of `import_bound`.
  bool advance_bound(uint32_t partition, const char* state, size_t bytes);

  // ---- a partition that is copied row by row while it is used. Another one that is given rows with their
  // marks, and before them `export_clocks` of that moment, and again those that calls have named since or
  // that are gone, becomes what it is.

  // From here on; what is known of before is forgotten.
  void follow(uint32_t partition);
  void unfollow(uint32_t partition) { bounds_[partition].followed.reset(); }
  // What rules have removed since the last call or `follow`. Lost where nobody follows.
  Removals take_followed(uint32_t partition);
  // For `import_bound`: the clocks alone, or all that `export_bound` gives. The marks of rows that are there
  // become what they are by now of rows that were not used.
  std::string export_clocks(uint32_t partition, bool whole) const;

  // ---- a bounded table as of one moment, read while it goes on: see cut.h. One at a time.

  // Of a partition as it is now. Costs nothing yet: marks are copied before they first age, counters of the
  // sketch before they first change.
  void open_cut(uint32_t partition);
  void close_cut(uint32_t partition);
  // What marks and sketches take when they all have been.
  size_t cut_bytes() const;
  // What `export_bound` gave then. Empty where no cut is open.
  std::string cut_bound(uint32_t partition) const;
  // The marks that rows had when the cuts of their partitions were opened, of those that were there then and
  // that nobody has named since; of others anything. `out` [n, exported marks].
  void cut_marks(const uint64_t* ids, size_t n, uint8_t* out) const;
  // The rows of all partitions that rules have removed since the last call, with their marks as of the cut.
  // False: some are lost.
  bool take_cut_rows(CutRows* out);

  // ---- the cold tier: see cold.h. Rows beyond a partition's share of the memory lie there; those of one
  // call stay in memory, also where they are more than the share.

  // Makes of the capacity one of the memory. Before the first row, of a table that has a capacity and no time
  // to live.
  void open_cold(const std::string& folder, const std::string& name);
  const ColdTier* cold() const { return cold_.get(); }
  // Marks that are part of a row: which rows are in memory is not.
  uint32_t exported_marks() const { return cold_ ? 0 : layout_.marks; }
  bool is_cold(uint64_t id) const;
  // True if there was a cold row.
  bool erase_cold(uint64_t id) { return cold_->erase(partition_of(id), id); }
  // Has those of these ids come back that are cold: `numbers[position]` becomes the number of the row, and
  // the others are left. Throws ColdError.
  void bring_back(uint32_t partition, const uint64_t* ids, const std::vector<uint32_t>& positions,
                  uint32_t* numbers);

  uint32_t partitions() const { return static_cast<uint32_t>(parts_.size()); }
  uint32_t partition_of(uint64_t id) const;
  // Cold ones included.
  uint64_t rows(uint32_t partition) const {
    return parts_[partition].count + (cold_ ? cold_->rows(partition) : 0);
  }
  // Calls visit(id, row) for every row of a partition in ascending order of the mixed id: an order that does
  // not depend on history, and that concatenated over partitions is the same for any number of them.
  void visit_ordered(uint32_t partition, const std::function<void(uint64_t id, const Row& row)>& visit) const;
  // Its ids in that order.
  std::vector<uint64_t> ids(uint32_t partition) const;

  TableSize size() const;

 private:
  struct Partition {
    BlockList chunk_list, value_list, side_list;
    Stash stash;
    uint32_t chunks = 0;
    uint32_t next_row = 0;  // row numbers below this have been given out
    uint64_t count = 0;
    uint64_t removed_at = 0;
    std::vector<uint32_t> free_rows;
  };

  void publish(uint32_t partition);
  // An index for so many rows of this partition.
  void reserve_index(uint32_t partition, uint64_t rows);
  // For so many new rows: in the index, and beside them.
  void make_way(uint32_t partition, uint64_t rows);
  // The number of a new row of mixed id h, for which there is room. Readers see it once it is published.
  uint32_t enter(uint32_t partition, uint64_t h);
  void import_few(uint32_t partition, const RowsOfPartition& rows);
  void import_one(uint32_t partition, const RowsOfPartition& row);
  void write_rows(uint32_t partition, const RowsOfPartition& rows, const uint32_t* numbers);
  // Calls visit(h, row number) for every row of a partition that is wanted, by its number and the lower half
  // of h, nearly in the order of h.
  template <typename Wanted, typename Visit>
  void for_each_entry(uint32_t partition, Wanted&& wanted, Visit&& visit) const;
  void grow_index(uint32_t partition, uint32_t chunks);
  // Takes a row out of the index; false where there is none. The caller sees to `removed_at` and `publish`.
  bool unlink(uint32_t partition, uint64_t h);
  uint32_t chunks_most(uint32_t partition) const;
  uint64_t bytes_of(uint64_t rows) const;
  uint64_t rows_within(uint64_t bytes) const;
  uint8_t* marks_of(const Row& row) const {
    return row.version + (layout_.mark_offset - layout_.version_offset);
  }
  uint8_t recency_clock(uint32_t partition) const;
  void mark_new(uint32_t partition, const Row& row) const;
  void mark_used(uint32_t partition, const Row& row) const;
  void expire(uint32_t partition, uint64_t seconds, const std::vector<uint32_t>& used);
  void entered_one(uint32_t partition);
  // Rows of a call that are cold, and their records one behind the other.
  struct Returning {
    uint32_t position, slot;
  };
  std::vector<Returning> read_cold(uint32_t partition, const uint64_t* ids, std::vector<uint32_t>* wanted,
                                   std::vector<char>* records) const;
  void enter_cold(uint32_t partition, const uint64_t* ids, const std::vector<Returning>& rows,
                  std::vector<char>& records, uint32_t* numbers);
  void note_removals(uint32_t partition, const std::vector<Victim>& rows, Removals* to) const;
  // The marks of rows that nobody has named are about to change.
  void marks_age(uint32_t partition);
  void cut_marks_of(uint32_t partition, uint32_t number, uint8_t* out) const;
  void keep_for_cut(uint32_t partition, const std::vector<Victim>& rows);
  void age_marks(uint32_t partition, uint64_t made, uint64_t tick, uint64_t since);
  std::string export_head(uint32_t partition) const;
  void replace_sketch(uint32_t partition, Sketch sketch);
  std::string bound_head(uint32_t partition, uint32_t version, uint32_t more) const;
  void assign_sketch(uint32_t partition, uint64_t window, uint64_t seen, const char* counters, size_t bytes);
  bool go_on(uint32_t partition, const char* state, size_t bytes);
  // Has rows go until `entering` more find room. `spared`: row numbers that stay.
  void make_room_for(uint32_t partition, uint64_t entering, const std::vector<uint32_t>& spared);
  // Enters a row number under h.
  void link(BlockList& chunk_list, uint32_t chunks, Stash& stash, uint64_t h, uint32_t number) const;

  TableSpec spec_;
  RowLayout layout_;
  int partition_bits_;
  int value_shift_, side_shift_ = 0;
  Arena* arena_;
  uint64_t secret_;
  uint64_t generation_ = 0, erasures_ = 0;
  std::vector<Partition> parts_;
  std::vector<PartitionView> views_;
  std::vector<float> adam_bias_;
  std::vector<PartitionBound> bounds_;                 // empty: not bounded
  uint64_t share_ = ~uint64_t{0}, shares_larger_ = 0;  // the first so many partitions hold one row more
  bool keeps_removals_ = false;
  std::vector<std::unique_ptr<PartitionCut>> cuts_;  // null where none is open
  EvictionSink sink_;
  std::unique_ptr<ColdTier> cold_;
  mutable std::shared_mutex mutex_;
};

// A row as it is exported: its values as stored, and its state in words of 32 bits, the version behind it
// where updates draw random bits from it. Without one, a row that is imported begins at version 0.
void export_row(const TableSpec& spec, const Row& row, uint8_t* values, float* state);

}  // namespace satrap
