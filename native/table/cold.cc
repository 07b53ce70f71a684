#include "table/cold.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/hash.h"
#include "durable/crc32c.h"

namespace satrap {
namespace {

constexpr uint64_t kSegmentBytes = uint64_t{256} << 10, kPage = 4096;
constexpr uint32_t kHead = 16, kCrc = 8, kVersion = 12;
constexpr uint64_t kDeadParts = 3;  // one of so many records may be dead before segments are moved together

int open_unnamed(const std::string& folder) {
#if defined(O_TMPFILE)
  const int file = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (file >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return file;
#endif
  // A file system without nameless files: it has a name for a moment.
  std::string path = folder + "/satrap-cold-XXXXXX";
  const int named = ::mkstemp(path.data());
  if (named >= 0) {
    ::unlink(path.c_str());
    ::fcntl(named, F_SETFD, FD_CLOEXEC);
  }
  return named;
}

uint64_t id_in(const char* record) {
  uint64_t id;
  std::memcpy(&id, record, 8);
  return id;
}

}  // namespace

ColdTier::ColdTier(const RowLayout& layout, int partition_bits, Arena* arena, const std::string& folder,
                   const std::string& table)
    : layout_(layout),
      record_bytes_(kHead + layout.value_bytes + layout.state_bytes()),
      slots_(static_cast<uint32_t>(std::max<uint64_t>(1, kSegmentBytes / record_bytes_))),
      segment_bytes_((uint64_t{slots_} * record_bytes_ + kPage - 1) / kPage * kPage),
      folder_(folder),
      table_(table),
      parts_(size_t{1} << partition_bits) {
  for (Part& p : parts_) p.index.configure(arena, partition_bits);
  file_ = open_unnamed(folder);
  if (file_ < 0)
    throw ColdError("no file for the cold rows of table '" + table + "' can be made in " + folder +
                    " (store.cold_folder): " + std::strerror(errno));
  // Reads are of single records; what is read ahead of them would be read for nothing.
  ::posix_fadvise(file_, 0, 0, POSIX_FADV_RANDOM);
}

ColdTier::~ColdTier() {
  if (file_ >= 0) ::close(file_);
}

void ColdTier::fail(const std::string& what, uint64_t offset, int error) const {
  throw ColdError("the cold rows of table '" + table_ + "', a file without a name in " + folder_ +
                  " (store.cold_folder), offset " + std::to_string(offset) + ": " + what +
                  (error == 0 ? "" : std::string(": ") + std::strerror(error)) +
                  (error == ENOSPC ? ". Free some of the disk, or let more rows stay in memory (tables." +
                                         table_ + ".cold)"
                                   : "") +
                  ". Rows are as they were before this call; what was saved before is intact");
}

Row ColdTier::row_in(char* record) const {
  return {record + kHead, reinterpret_cast<float*>(record + kHead + layout_.value_bytes),
          reinterpret_cast<uint8_t*>(record + kVersion)};
}

uint64_t ColdTier::rows() const {
  uint64_t sum = 0;
  for (const Part& p : parts_) sum += p.index.size();
  return sum;
}

// ---- the file

uint32_t ColdTier::take_segment(Part& part) {
  part.free.reserve(part.segments.size() + 1);  // so that giving back never fails
  if (part.free.empty()) {
    if ((part.segments.size() + 1) * uint64_t{slots_} >= ColdIndex::kNone)
      fail("a partition is full (2^32 records); use more partitions", 0, 0);
    part.segments.emplace_back();
    part.free.push_back(static_cast<uint32_t>(part.segments.size() - 1));
  }
  std::lock_guard lock(mutex_);
  if (free_.empty()) {
    if (free_.capacity() <= next_) free_.reserve(2 * size_t{next_} + 64);  // likewise
    free_.push_back(next_++);
  }
  const uint32_t segment = part.free.back();
  part.free.pop_back();
  part.segments[segment] = {free_.back(), 0, 0, ++uses_};
  free_.pop_back();
  return segment;
}

void ColdTier::give_back(Part& part, uint32_t segment) noexcept {
  std::lock_guard lock(mutex_);
  free_.push_back(part.segments[segment].number);
  part.used -= part.segments[segment].used;
  part.segments[segment] = {};
  part.free.push_back(segment);
}

void ColdTier::read_bytes(char* out, size_t bytes, uint64_t offset) const {
  while (bytes > 0) {
    const ssize_t n = ::pread(file_, out, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("cannot be read", offset, errno);
    if (n == 0) fail("the file ends here", offset, 0);
    out += n, offset += static_cast<uint64_t>(n), bytes -= static_cast<size_t>(n);
  }
}

void ColdTier::write_bytes(const char* data, size_t bytes, uint64_t offset) {
  while (bytes > 0) {
    const ssize_t n = ::pwrite(file_, data, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("cannot be written", offset, errno);
    data += n, offset += static_cast<uint64_t>(n), bytes -= static_cast<size_t>(n);
  }
}

uint32_t ColdTier::seal(const Part& part, const char* record, uint32_t slot) const {
  const uint32_t head = crc32c(part.segments[slot / slots_].use, record, kCrc);
  return crc32c(head, record + kVersion, record_bytes_ - kVersion);
}

void ColdTier::check(const Part& part, const char* record, uint32_t slot) const {
  uint32_t crc;
  std::memcpy(&crc, record + kCrc, 4);
  if (crc != seal(part, record, slot))
    fail("a record of " + std::to_string(record_bytes_) + " bytes is damaged: its checksum is " +
             std::to_string(crc) + ", that of its bytes " + std::to_string(seal(part, record, slot)),
         offset_of(part, slot), 0);
}

// ---- reading

void ColdTier::locate(uint32_t partition, uint64_t id, std::vector<uint64_t>* offsets) const {
  const Part& part = parts_[partition];
  part.index.find(mix(id), [&](uint32_t slot) {
    offsets->push_back(offset_of(part, slot));
    return false;
  });
}

void ColdTier::prefetch_index(uint32_t partition, uint64_t id) const {
  parts_[partition].index.prefetch(mix(id));
}

void ColdTier::advise(const std::vector<uint64_t>& offsets) const {
  for (uint64_t at : offsets)
    ::posix_fadvise(file_, static_cast<off_t>(at), record_bytes_, POSIX_FADV_WILLNEED);
}

void ColdTier::advise_ahead(const std::vector<uint64_t>& offsets) const {
  advise(offsets);
  asked_.fetch_add(static_cast<int64_t>(offsets.size()), std::memory_order_relaxed);
}

bool ColdTier::asked(size_t ids) const {
  const auto n = static_cast<int64_t>(ids);
  const int64_t left = asked_.fetch_sub(n, std::memory_order_relaxed);
  // What was asked for and did not come is not counted for long.
  if (left < n || left > 8 * n) asked_.store(0, std::memory_order_relaxed);
  return 2 * left >= n;
}

bool ColdTier::read(uint32_t partition, uint64_t id, char* record, uint32_t* slot) const {
  const Part& part = parts_[partition];
  bool found = false;
  part.index.find(mix(id), [&](uint32_t s) {
    read_bytes(record, record_bytes_, offset_of(part, s));
    check(part, record, s);
    *slot = s;
    return found = id_in(record) == id;
  });
  return found;
}

// The places of a segment's live records, each checked. One whose id is damaged is found nowhere in the
// index: then there are too few, and its checksum tells which.
std::vector<uint32_t> ColdTier::live_in(const Part& part, uint32_t segment, const char* records) const {
  const Segment& s = part.segments[segment];
  std::vector<uint32_t> live;
  live.reserve(s.live);
  for (uint32_t i = 0; i < s.used; ++i) {
    const char* record = records + size_t{i} * record_bytes_;
    const uint32_t slot = segment * slots_ + i;
    if (!part.index.holds(mix(id_in(record)), slot)) continue;
    check(part, record, slot);
    live.push_back(i);
  }
  if (live.size() != s.live) {
    for (uint32_t i = 0; i < s.used; ++i)
      check(part, records + size_t{i} * record_bytes_, segment * slots_ + i);
    fail("a segment holds " + std::to_string(live.size()) + " rows instead of " + std::to_string(s.live),
         start_of(s), 0);
  }
  return live;
}

void ColdTier::visit(uint32_t partition, const std::function<void(uint64_t id, char* record)>& visit) const {
  const Part& part = parts_[partition];
  std::vector<char> bytes(size_t{slots_} * record_bytes_);
  for (size_t k = 0; k < part.segments.size(); ++k) {
    const Segment& s = part.segments[k];
    if (s.live == 0) continue;
    // The next segment is read while this one is looked at.
    if (k + 1 < part.segments.size() && part.segments[k + 1].live != 0)
      ::posix_fadvise(file_, static_cast<off_t>(start_of(part.segments[k + 1])),
                      static_cast<off_t>(segment_bytes_), POSIX_FADV_WILLNEED);
    read_bytes(bytes.data(), size_t{s.used} * record_bytes_, start_of(s));
    for (uint32_t i : live_in(part, static_cast<uint32_t>(k), bytes.data())) {
      char* record = bytes.data() + size_t{i} * record_bytes_;
      visit(id_in(record), record);
    }
  }
}

// ---- writing

void ColdTier::write_records(Part& part, std::vector<char>& records, size_t n,
                             const std::function<void(size_t i, uint32_t slot)>& enter,
                             const std::function<void(size_t i, uint32_t slot)>& withdraw) {
  struct Run {
    uint32_t segment, first, count;
  };
  std::vector<Run> runs;
  std::vector<uint32_t> slots, taken;
  size_t entered = 0;
  try {
    taken.reserve(n / slots_ + 2);
    runs.reserve(n / slots_ + 2);
    slots.reserve(n);
    for (size_t done = 0; done < n; done += runs.back().count) {
      uint32_t to = part.filling;
      if (!runs.empty() || to == ColdIndex::kNone || part.segments[to].used == slots_)
        taken.push_back(to = take_segment(part));
      const uint32_t first = part.segments[to].used;
      const auto count = static_cast<uint32_t>(std::min<size_t>(n - done, slots_ - first));
      char* at = records.data() + done * record_bytes_;
      for (uint32_t i = 0; i < count; ++i) {
        slots.push_back(to * slots_ + first + i);
        char* record = at + size_t{i} * record_bytes_;
        const uint32_t crc = seal(part, record, slots.back());
        std::memcpy(record + kCrc, &crc, 4);
      }
      write_bytes(at, size_t{count} * record_bytes_,
                  start_of(part.segments[to]) + uint64_t{first} * record_bytes_);
      runs.push_back({to, first, count});
    }
    for (; entered < n; ++entered) enter(entered, slots[entered]);
  } catch (...) {
    for (size_t i = 0; i < entered; ++i) withdraw(i, slots[i]);
    for (uint32_t segment : taken) give_back(part, segment);
    throw;
  }
  for (const Run& r : runs) {
    part.segments[r.segment].used += r.count;
    part.segments[r.segment].live += r.count;
    part.used += r.count;
    part.filling = r.segment;
  }
}

void ColdTier::append(uint32_t partition, const Victim* rows, const Row* where, size_t n) {
  Part& part = parts_[partition];
  std::vector<char> records(n * record_bytes_);
  for (size_t i = 0; i < n; ++i) {
    char* record = records.data() + i * record_bytes_;
    std::memcpy(record, &rows[i].id, 8);
    record[kVersion] = static_cast<char>(*where[i].version);
    std::memcpy(record + kHead, where[i].values, layout_.value_bytes);
    std::memcpy(record + kHead + layout_.value_bytes, where[i].state, layout_.state_bytes());
  }
  part.index.reserve(n);
  write_records(
      part, records, n, [&](size_t i, uint32_t slot) { part.index.insert(mix(rows[i].id), slot); },
      [&](size_t i, uint32_t slot) { part.index.erase(mix(rows[i].id), slot); });
  part.written += n;
}

void ColdTier::forget(uint32_t partition, uint64_t id, uint32_t slot, bool returned) {
  Part& part = parts_[partition];
  if (!part.index.erase(mix(id), slot)) return;
  --part.segments[slot / slots_].live;
  part.returned += returned;
}

bool ColdTier::erase(uint32_t partition, uint64_t id) {
  if (parts_[partition].index.size() == 0) return false;
  std::vector<char> record(record_bytes_);
  uint32_t slot;
  if (!read(partition, id, record.data(), &slot)) return false;
  forget(partition, id, slot, false);
  return true;
}

void ColdTier::compact(uint32_t partition) {
  Part& part = parts_[partition];
  for (;;) {
    const uint64_t dead = part.used - part.index.size();
    if (dead < slots_ || dead * kDeadParts <= part.used) return;
    uint32_t least = ColdIndex::kNone;
    for (uint32_t k = 0; k < part.segments.size(); ++k) {
      const Segment& s = part.segments[k];
      if (s.number == ColdIndex::kNone || k == part.filling) continue;
      if (least == ColdIndex::kNone || s.live < part.segments[least].live) least = k;
    }
    if (least == ColdIndex::kNone) return;
    if (part.segments[least].live != 0) move_segment(part, least);
    give_back(part, least);
  }
}

void ColdTier::move_segment(Part& part, uint32_t segment) {
  const uint32_t used = part.segments[segment].used;
  std::vector<char> records(size_t{used} * record_bytes_);
  read_bytes(records.data(), records.size(), start_of(part.segments[segment]));
  const std::vector<uint32_t> live = live_in(part, segment, records.data());
  for (size_t i = 0; i < live.size(); ++i)
    std::memmove(records.data() + i * record_bytes_, records.data() + size_t{live[i]} * record_bytes_,
                 record_bytes_);
  auto h = [&](size_t i) { return mix(id_in(records.data() + i * record_bytes_)); };
  auto old = [&](size_t i) { return segment * slots_ + live[i]; };
  write_records(
      part, records, live.size(), [&](size_t i, uint32_t slot) { part.index.replace(h(i), old(i), slot); },
      [&](size_t i, uint32_t slot) { part.index.replace(h(i), slot, old(i)); });
  part.segments[segment].live = 0;
  part.moved += live.size();
}

void ColdTier::clear() {
  for (Part& p : parts_) {
    p.index.clear();
    for (uint32_t k = 0; k < p.segments.size(); ++k)
      if (p.segments[k].number != ColdIndex::kNone) give_back(p, k);
    p.filling = ColdIndex::kNone;
  }
  // The disk's space is others' again; where that fails, the segments are used again all the same.
  [[maybe_unused]] const int cut = ::ftruncate(file_, 0);
}

ColdCounts ColdTier::counts() const {
  ColdCounts c;
  for (const Part& p : parts_) {
    c.rows += p.index.size();
    c.index_bytes += p.index.bytes();
    c.file_bytes += (p.segments.size() - p.free.size()) * segment_bytes_;
    c.written += p.written, c.moved += p.moved, c.returned += p.returned;
  }
  c.looked_up = looked_up_.load(std::memory_order_relaxed);
  c.record_bytes = record_bytes_;
  return c;
}

}  // namespace satrap
