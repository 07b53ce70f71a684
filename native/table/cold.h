// The cold rows of one table: those beyond its memory, in a file on a local disk.
//
// The file has no name and goes with the process: what survives a crash is journal, snapshot and checkpoint,
// which hold every row wherever it is. It is cut into segments of records; a partition fills one after the
// other, never writes a record twice, and gives a segment back when nothing in it is of use any more. Where
// more than a third of a partition's records are dead, the segments with the fewest live ones are moved
// together: so the file takes at most half as much again as its rows, and each row that is written costs at
// most two further writes, later.
//
//   record   id u64 | CRC32C u32 | version u8 | zeros [3] | values as stored | state
//   slot     number of a record in its partition: segment · records of a segment + place
//
// The CRC is of all else in the record, and begins with how often its segment has been used: a write that was
// lost leaves a record that does not fit. Everything is read and written through the page cache, without
// which a crash of nothing but this process is no matter; reads are asked for by the batch before they are
// waited for.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/arena.h"
#include "table/bounds.h"
#include "table/cold_index.h"
#include "table/spec.h"
#include "table/view.h"

namespace satrap {

// A disk that is full, a read that fails, a record that is damaged. Says file and offset. No row has changed.
struct ColdError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct ColdCounts {
  uint64_t rows = 0;         // in the file now
  uint64_t file_bytes = 0;   // of the segments in use
  uint64_t index_bytes = 0;  // of memory
  uint64_t written = 0;      // rows that went cold
  uint64_t moved = 0;        // rows written again to give their segment back
  uint64_t returned = 0;     // rows that came back for a training pull or a push
  uint64_t looked_up = 0;    // rows read where they are
  uint64_t record_bytes = 0;
};

// Locks as the table's: `const` methods under a shared one, others under an exclusive one, different
// partitions from different threads at once.
class ColdTier {
 public:
  // `folder`: where the file lies. `table`: for messages. Throws ColdError.
  ColdTier(const RowLayout& layout, int partition_bits, Arena* arena, const std::string& folder,
           const std::string& table);
  ~ColdTier();
  ColdTier(const ColdTier&) = delete;
  ColdTier& operator=(const ColdTier&) = delete;

  uint64_t rows(uint32_t partition) const { return parts_[partition].index.size(); }
  uint64_t rows() const;
  uint32_t record_bytes() const { return record_bytes_; }
  // The row in a record, as long as the record's memory lives.
  Row row_in(char* record) const;

  // Enters what the file must be read for in order to look for this id, if anything.
  void locate(uint32_t partition, uint64_t id, std::vector<uint64_t>* offsets) const;
  void prefetch_index(uint32_t partition, uint64_t id) const;
  // Has the system begin to read these, without waiting. Needs no lock.
  void advise(const std::vector<uint64_t>& offsets) const;
  // The same, for a pull to come, which then does not ask again.
  void advise_ahead(const std::vector<uint64_t>& offsets) const;
  // Whether most of what so many ids without a row in memory need has been asked for ahead.
  bool asked(size_t ids) const;
  // Reads the record of an id into `record`; false where there is none.
  bool read(uint32_t partition, uint64_t id, char* record, uint32_t* slot) const;
  void count_lookups(uint64_t n) const { looked_up_.fetch_add(n, std::memory_order_relaxed); }

  // Writes rows that are about to leave the memory.
  void append(uint32_t partition, const Victim* rows, const Row* where, size_t n);
  // The row of this id and slot has come back, or is gone.
  void forget(uint32_t partition, uint64_t id, uint32_t slot, bool returned);
  bool erase(uint32_t partition, uint64_t id);
  // Moves segments together where too much is dead. Slots known before are not valid any more.
  void compact(uint32_t partition);
  void clear();

  // Calls visit(id, record) for every row of a partition, in no order.
  void visit(uint32_t partition, const std::function<void(uint64_t id, char* record)>& visit) const;

  ColdCounts counts() const;

 private:
  struct Segment {
    uint32_t number = ColdIndex::kNone;  // its place in the file; kNone: this one is free
    uint32_t live = 0, used = 0;         // records
    uint32_t use = 0;                    // of all segments ever begun, which one: where checksums begin
  };
  struct Part {
    ColdIndex index;
    std::vector<Segment> segments;
    std::vector<uint32_t> free;           // of these, as many as there are
    uint32_t filling = ColdIndex::kNone;  // the one that is written to
    uint64_t used = 0;                    // records of all segments, dead ones included
    uint64_t written = 0, moved = 0, returned = 0;
  };

  uint64_t offset_of(const Part& part, uint32_t slot) const {
    return start_of(part.segments[slot / slots_]) + uint64_t{slot % slots_} * record_bytes_;
  }
  uint64_t start_of(const Segment& s) const { return s.number * segment_bytes_; }
  uint32_t take_segment(Part& part);
  void give_back(Part& part, uint32_t segment) noexcept;
  uint32_t seal(const Part& part, const char* record, uint32_t slot) const;
  void check(const Part& part, const char* record, uint32_t slot) const;
  void read_bytes(char* out, size_t bytes, uint64_t offset) const;
  void write_bytes(const char* data, size_t bytes, uint64_t offset);
  // Writes records, of which all but the CRC is in place, and enters them by `enter(i, slot)`; where
  // something fails on the way, `withdraw(i, slot)` takes back what was entered.
  void write_records(Part& part, std::vector<char>& records, size_t n,
                     const std::function<void(size_t i, uint32_t slot)>& enter,
                     const std::function<void(size_t i, uint32_t slot)>& withdraw);
  std::vector<uint32_t> live_in(const Part& part, uint32_t segment, const char* records) const;
  void move_segment(Part& part, uint32_t segment);
  [[noreturn]] void fail(const std::string& what, uint64_t offset, int error) const;

  RowLayout layout_;
  uint32_t record_bytes_, slots_;  // of a segment
  uint64_t segment_bytes_;
  int file_ = -1;
  std::string folder_, table_;
  std::vector<Part> parts_;
  mutable std::mutex mutex_;    // of what follows
  std::vector<uint32_t> free_;  // places in the file
  uint32_t next_ = 0, uses_ = 0;
  mutable std::atomic<uint64_t> looked_up_{0};
  mutable std::atomic<int64_t> asked_{0};  // records asked for ahead, less the ids of pulls since
};

}  // namespace satrap
