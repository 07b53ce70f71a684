#include "table/table.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <new>
#include <random>
#include <stdexcept>

#include "base/hash.h"
#include "table/probe.h"

namespace satrap {
namespace {
// A block of rows is about this large: small enough that a partly filled last one is no loss, large enough
// that the list of blocks stays in the cache.
constexpr size_t kRowBlockBytes = size_t{128} << 10;
constexpr size_t kChunkBlockBytes = sizeof(Chunk) << kChunkShift;
constexpr uint32_t kMaxRows = 0xFFFFFFF0u;

// Fill at which an index grows: 4/5 of its slots. It then grows by an eighth, so fill stays within 0.71 and
// 0.80: fuller, more rows lie outside their home chunk; emptier, memory is lost.
// A small one grows by half: its slack is little, and it grows less often.
constexpr uint32_t kSmallIndex = 4096;
uint64_t index_limit(uint64_t chunks) { return chunks * Chunk::kSlots * 4 / 5; }
uint64_t chunks_for(uint64_t rows) { return rows * 5 / (4 * Chunk::kSlots) + 1; }

struct EmptyIndex {
  Chunk chunk{};
  char* blocks[1];
  alignas(64) char row[64] = {};
  char* rows[1];
  EmptyIndex() : blocks{reinterpret_cast<char*>(&chunk)}, rows{row} {
    std::fill_n(chunk.place, Chunk::kSlots, Chunk::kFree);
  }
};
const EmptyIndex kEmpty;

uint64_t random_secret() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

// Elements that a list of blocks has room for when it holds n.
uint64_t room_for(uint64_t n, int shift) {
  const uint64_t per_block = uint64_t{1} << shift;
  if (n == 0) return 0;
  return n <= per_block ? std::bit_ceil(n) : (n + per_block - 1) / per_block * per_block;
}
}  // namespace

uint32_t Stash::find(uint64_t h) const {
  const auto it = rows_.find(h);
  return it == rows_.end() ? kNoRow : it->second;
}

Table::Table(const TableSpec& spec, int partition_bits, Arena* arena)
    : spec_(spec),
      layout_(spec),
      partition_bits_(partition_bits),
      arena_(arena),
      secret_(random_secret()),
      parts_(size_t{1} << partition_bits),
      views_(size_t{1} << partition_bits),
      cuts_(size_t{1} << partition_bits) {
  for (Partition& p : parts_) {
    p.chunk_list.configure(arena, sizeof(Chunk), kChunkBlockBytes);
    p.value_list.configure(arena, layout_.value_stride, kRowBlockBytes);
    if (!layout_.together) p.side_list.configure(arena, layout_.record_bytes, kRowBlockBytes / 2);
  }
  value_shift_ = parts_[0].value_list.shift();
  side_shift_ = parts_[0].side_list.shift();
  for (uint32_t p = 0; p < partitions(); ++p) publish(p);
  if (spec.bound.any()) {
    bounds_.resize(parts_.size());
    if (spec.bound.eviction != Eviction::kNone) {
      share_ = spec.bound.rows != 0 ? spec.bound.rows / partitions()
                                    : rows_within(spec.bound.bytes / partitions());
      shares_larger_ = spec.bound.rows != 0 ? spec.bound.rows % partitions() : 0;
      if (share_ == 0)
        throw std::invalid_argument("a table's capacity must be a row or more for each partition");
    }
  }
  if (spec.optimizer.kind == OptimizerKind::kAdam || spec.optimizer.kind == OptimizerKind::kAdamW) {
    adam_bias_.resize(2 * kBiasSteps);
    for (size_t t = 0; t < kBiasSteps; ++t) {
      adam_bias_[2 * t] =
          static_cast<float>(1.0 - std::pow(double{spec.optimizer.beta1}, static_cast<double>(t)));
      adam_bias_[2 * t + 1] =
          static_cast<float>(1.0 - std::pow(double{spec.optimizer.beta2}, static_cast<double>(t)));
    }
  }
}

TableView Table::view() const {
  const uint64_t inverse = layout_.group > 1 ? ~uint64_t{0} / layout_.group + 1 : 0;
  return {views_.data(), partition_bits_, value_shift_, side_shift_, inverse, secret_, layout_, &spec_};
}

uint32_t Table::partition_of(uint64_t id) const {
  return partition_bits_ == 0 ? 0 : static_cast<uint32_t>(mix(id) >> (64 - partition_bits_));
}

void Table::publish(uint32_t partition) {
  const Partition& p = parts_[partition];
  PartitionView& v = views_[partition];
  v.chunk_blocks = p.chunks == 0 ? kEmpty.blocks : p.chunk_list.blocks();
  v.chunks = std::max(p.chunks, 1u);
  v.number_bits = number_bits_of(v.chunks, partition_bits_);
  v.stash = p.stash.empty() ? nullptr : &p.stash;
  v.value_blocks = p.next_row == 0 ? kEmpty.rows : p.value_list.blocks();
  v.side_blocks = p.next_row == 0 ? kEmpty.rows : p.side_list.blocks();
  v.rows = p.next_row;
}

void Table::make_way(uint32_t part, uint64_t rows) {
  Partition& p = parts_[part];
  uint64_t chunks = p.chunks;
  while (p.count + rows > index_limit(chunks))
    chunks += std::max<uint64_t>(1, chunks / (chunks < kSmallIndex ? 2 : 8));
  if (chunks > p.chunks) {
    const uint64_t most = p.count < share(part) ? chunks_most(part) : chunks;
    grow_index(part, std::max(p.chunks + 1, static_cast<uint32_t>(std::min(chunks, most))));
  }
  const uint64_t numbers = p.next_row + rows - std::min<uint64_t>(rows, p.free_rows.size());
  if (numbers > kMaxRows) throw std::length_error("a partition is full (2^32 rows); use more partitions");
  // A list that could only grow in part has still moved: readers must see where it is now.
  try {
    p.value_list.reserve(numbers);
    if (!layout_.together) p.side_list.reserve((numbers + layout_.group - 1) / layout_.group);
  } catch (...) {
    publish(part);
    throw;
  }
}

uint32_t Table::enter(uint32_t part, uint64_t h) {
  Partition& p = parts_[part];
  const uint32_t number = p.free_rows.empty() ? p.next_row : p.free_rows.back();
  link(p.chunk_list, p.chunks, p.stash, h, number);
  if (p.free_rows.empty())
    ++p.next_row;
  else
    p.free_rows.pop_back();
  ++p.count;
  return number;
}

void Table::prefetch(uint64_t id) const {
  const uint64_t h = mix(id);
  const PartitionView& p = views_[partition_of(id)];
  __builtin_prefetch(chunk_at(p, home_chunk(h, partition_bits_, p.chunks)), 1);
}

Row Table::find(uint64_t id) const {
  const PartitionView& p = views_[partition_of(id)];
  const uint32_t number = find_number(p, partition_bits_, mix(id));
  return number == kNoRow ? Row{} : row_at(view(), p, number);
}

Row Table::find_anywhere(uint64_t id, std::vector<char>* record) const {
  const Row row = find(id);
  if (row || !cold_) return row;
  record->resize(cold_->record_bytes());
  uint32_t slot;
  return cold_->read(partition_of(id), id, record->data(), &slot) ? cold_->row_in(record->data()) : Row{};
}

Row Table::find_or_create(uint64_t id, uint32_t* number) {
  bool inserted;
  const Row row = find_or_insert(id, &inserted, number);
  if (!inserted) return row;
  if (spec_.format == ValueFormat::kFp32) {
    kernels().initialize(spec_, id, reinterpret_cast<float*>(row.values), row.state);
  } else {
    float first[kMaxDim];
    kernels().initialize(spec_, id, first, row.state);
    kernels().encode(spec_.format, first, row.values, layout_.dim);
  }
  return row;
}

Row Table::find_or_insert(uint64_t id, bool* inserted, uint32_t* number_out) {
  const uint64_t h = mix(id);
  const uint32_t part = partition_of(id);
  uint32_t number = find_number(views_[part], partition_bits_, h);
  *inserted = number == kNoRow;
  if (*inserted) {
    make_way(part, 1);
    number = enter(part, h);
    publish(part);
  }
  if (number_out != nullptr) *number_out = number;
  const Row row = row_at(view(), views_[part], number);
  if (*inserted) {
    *row.version = 0;
    if (layout_.marks != 0) mark_new(part, row);
  }
  return row;
}

void Table::reserve_rows(uint64_t rows, const std::vector<bool>* wanted) {
  for (uint32_t p = 0; p < partitions(); ++p)
    if (wanted == nullptr || (*wanted)[p]) reserve_index(p, rows / parts_.size());
}

void Table::reserve_index(uint32_t partition, uint64_t rows) {
  // Partitions hold about the same share; two in a hundred more leaves room for chance, and growth for the
  // rest.
  const uint64_t chunks = chunks_for(rows + rows / 50 + 16);
  if (chunks > kMaxRows / Chunk::kSlots)
    throw std::length_error("a partition would be full (2^32 rows); use more partitions");
  const uint64_t most = std::min<uint64_t>(chunks, chunks_most(partition));
  if (most > parts_[partition].chunks) grow_index(partition, static_cast<uint32_t>(most));
}

void Table::link(BlockList& chunk_list, uint32_t chunks, Stash& stash, uint64_t h, uint32_t number) const {
  const uint32_t home = home_chunk(h, partition_bits_, chunks);
  auto chunk_of = [&](uint32_t k) -> Chunk& {
    return *reinterpret_cast<Chunk*>(chunk_list.at(chunk_behind(home, probe_offset(h, k), chunks)));
  };
  uint32_t end = 0;  // of the chunks without a free place
  int slot = Chunk::kSlots;
  for (; end < 16; ++end) {
    if (probe_offset(h, end) == Chunk::kFree) continue;
    const Chunk& chunk = chunk_of(end);
    slot = 0;
    while (slot < Chunk::kSlots && chunk.place[slot] != Chunk::kFree) ++slot;
    if (slot < Chunk::kSlots) break;
  }
  if (end == 16) stash.insert(h, number);  // may throw, so before anything has changed
  for (uint32_t k = 0; k < end; ++k) {
    if (probe_offset(h, k) == Chunk::kFree) continue;
    Chunk& passed = chunk_of(k);
    if (passed.overflow != 255) ++passed.overflow;
  }
  if (end == 16) return;
  const int number_bits = number_bits_of(chunks, partition_bits_);
  Chunk& chunk = chunk_of(end);
  chunk.entry[slot] = h << number_bits | (number & ~(~uint64_t{0} << number_bits));
  chunk.place[slot] = static_cast<uint8_t>(probe_offset(h, end) | uint64_t{number} >> number_bits << 4);
}

template <typename Wanted, typename Visit>
void Table::for_each_entry(uint32_t partition, Wanted&& wanted, Visit&& visit) const {
  const Partition& p = parts_[partition];
  const PartitionView& v = views_[partition];
  for (uint32_t c = 0; c < p.chunks; ++c) {
    const Chunk& chunk = *chunk_at(v, c);
    for (int slot = 0; slot < Chunk::kSlots; ++slot) {
      const uint32_t offset = chunk.place[slot] & 15u;
      if (offset == Chunk::kFree) continue;
      const uint32_t number = number_in(chunk, slot, v.number_bits);
      // The entry holds at least the lower half of h.
      if (!wanted(number, static_cast<uint32_t>(chunk.entry[slot] >> v.number_bits))) continue;
      const uint32_t home =
          c >= offset ? c - offset : static_cast<uint32_t>((c + uint64_t{p.chunks} * 15 - offset) % p.chunks);
      visit(mixed_id(chunk.entry[slot], home, partition, partition_bits_, p.chunks), number);
    }
  }
  for (const auto& [h, number] : p.stash.rows())
    if (wanted(number, static_cast<uint32_t>(h))) visit(h, number);
}

// Builds the larger index beside the old one, of this partition alone, and then takes its place.
void Table::grow_index(uint32_t partition, uint32_t chunks) {
  Partition& p = parts_[partition];
  BlockList grown;
  Stash stash;
  grown.configure(arena_, sizeof(Chunk), kChunkBlockBytes);
  grown.reserve(chunks);
  for (uint32_t c = 0; c < chunks; ++c) {
    Chunk& chunk = *reinterpret_cast<Chunk*>(grown.at(c));
    std::fill_n(chunk.entry, Chunk::kSlots, 0);
    std::fill_n(chunk.place, Chunk::kSlots, Chunk::kFree);
    chunk.overflow = 0;
  }
  for_each_entry(
      partition, [](uint32_t, uint32_t) { return true; },
      [&](uint64_t h, uint32_t number) { link(grown, chunks, stash, h, number); });
  p.chunk_list.swap(grown);
  p.stash = std::move(stash);
  p.chunks = chunks;
  publish(partition);
}

bool Table::erase(uint64_t id) {
  const uint32_t part = partition_of(id);
  if (!unlink(part, mix(id))) {
    if (!cold_ || !cold_->erase(part, id)) return false;
    ++erasures_;
    cold_->compact(part);
    return true;
  }
  ++erasures_;
  parts_[part].removed_at = ++generation_;
  publish(part);
  return true;
}

bool Table::unlink(uint32_t part, uint64_t h) {
  Partition& p = parts_[part];
  const PartitionView& v = views_[part];
  Chunk* found = nullptr;
  int slot = 0;
  const uint32_t number = find_number(v, partition_bits_, h, &found, &slot);
  if (number == kNoRow) return false;
  p.free_rows.push_back(number);  // may throw, so before anything has changed
  const uint32_t offset = found == nullptr ? uint32_t{Chunk::kFree} : found->place[slot] & 15u;
  if (found == nullptr)
    p.stash.erase(h);
  else
    found->place[slot] = Chunk::kFree;
  --p.count;
  // The chunks it had passed on its way count one row less, unless they had lost count.
  const uint32_t home = home_chunk(h, partition_bits_, v.chunks);
  for (uint32_t k = 0; k < 16; ++k) {
    const uint32_t at = probe_offset(h, k);
    if (at == Chunk::kFree) continue;
    if (at == offset) break;
    Chunk& passed = *chunk_at(v, chunk_behind(home, at, v.chunks));
    if (passed.overflow != 255) --passed.overflow;
  }
  return true;
}

void Table::clear() {
  ++generation_;
  ++erasures_;
  if (cold_) cold_->clear();
  for (uint32_t i = 0; i < partitions(); ++i) {
    Partition& p = parts_[i];
    p.chunk_list.clear();
    p.value_list.clear();
    p.side_list.clear();
    p.stash = Stash();
    p.free_rows.clear();
    p.free_rows.shrink_to_fit();
    p.chunks = p.next_row = 0;
    p.count = 0;
    p.removed_at = generation_;
    if (bounded()) bounds_[i] = PartitionBound();
    cuts_[i].reset();
    publish(i);
  }
}

void Table::visit_ordered(uint32_t partition,
                          const std::function<void(uint64_t id, const Row& row)>& visit) const {
  constexpr uint32_t kCold = ~uint32_t{0};
  struct Entry {
    uint64_t h;
    uint32_t number;  // kCold: see `record`
    size_t record;
  };
  std::vector<Entry> entries;
  entries.reserve(rows(partition));
  for_each_entry(
      partition, [](uint32_t, uint32_t) { return true; },
      [&](uint64_t h, uint32_t number) { entries.push_back({h, number, 0}); });
  std::vector<char> records;
  if (cold_) {
    records.reserve(cold_->rows(partition) * cold_->record_bytes());
    cold_->visit(partition, [&](uint64_t id, char* record) {
      entries.push_back({mix(id), kCold, records.size()});
      records.insert(records.end(), record, record + cold_->record_bytes());
    });
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.h < b.h; });
  const TableView t = view();
  const PartitionView& v = views_[partition];
  constexpr size_t kAhead = 8;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (i + kAhead < entries.size() && entries[i + kAhead].number != kCold) {
      const Row next = row_at(t, v, entries[i + kAhead].number);
      __builtin_prefetch(next.values);
      __builtin_prefetch(next.state);
    }
    const Entry& e = entries[i];
    visit(unmix(e.h), e.number == kCold ? cold_->row_in(records.data() + e.record) : row_at(t, v, e.number));
  }
}

std::vector<uint64_t> Table::ids(uint32_t partition) const {
  std::vector<uint64_t> out;
  out.reserve(rows(partition));
  for_each_entry(
      partition, [](uint32_t, uint32_t) { return true; }, [&](uint64_t h, uint32_t) { out.push_back(h); });
  if (cold_) cold_->visit(partition, [&](uint64_t id, char*) { out.push_back(mix(id)); });
  std::sort(out.begin(), out.end());
  for (uint64_t& x : out) x = unmix(x);
  return out;
}

TableSize Table::size() const {
  TableSize s;
  uint64_t held = 0;
  for (const Partition& p : parts_) {
    s.rows += p.count;
    held += p.chunk_list.bytes() + p.value_list.bytes() + p.side_list.bytes() + p.stash.bytes() +
            4 * p.free_rows.capacity();
  }
  for (const PartitionBound& b : bounds_) held += b.sketch.bytes();
  s.value_bytes = s.rows * layout_.value_bytes;
  s.state_bytes = s.rows * layout_.state_bytes();
  if (cold_) {
    const ColdCounts c = cold_->counts();
    s.rows += c.rows;
    held += c.index_bytes;
  }
  s.overhead_bytes = held - s.value_bytes - s.state_bytes;
  return s;
}

// ---- bounds
// ---------------------------------------------------------------------------------------------------

uint64_t Table::share(uint32_t partition) const { return share_ + (partition < shares_larger_); }

// Chunks that the index of a full partition needs: more than that it never has.
uint32_t Table::chunks_most(uint32_t partition) const {
  const uint64_t rows = share(partition);
  if (rows >= kMaxRows) return ~uint32_t{0};
  uint64_t chunks = rows * 5 / (4 * Chunk::kSlots);
  while (index_limit(chunks) < rows) ++chunks;
  return static_cast<uint32_t>(std::max<uint64_t>(chunks, 1));
}

// What a partition of so many rows takes at most: blocks of rows, of records and of the index, and what it
// keeps of the numbers of rows removed.
uint64_t Table::bytes_of(uint64_t rows) const {
  const Partition& p = parts_[0];
  uint64_t chunks = rows * 5 / (4 * Chunk::kSlots);
  while (index_limit(chunks) < rows) ++chunks;
  uint64_t bytes = room_for(chunks, p.chunk_list.shift()) * sizeof(Chunk) +
                   room_for(rows, value_shift_) * layout_.value_stride +
                   (spec_.bound.ttl != 0 ? 4 : 1) * rows;
  if (!layout_.together)
    bytes += room_for((rows + layout_.group - 1) / layout_.group, side_shift_) * layout_.record_bytes;
  return bytes;
}

uint64_t Table::rows_within(uint64_t bytes) const {
  const uint64_t sketch = Sketch((spec_.bound.window + partitions() - 1) / partitions()).bytes();
  if (bytes <= sketch) return 0;
  uint64_t low = 0, high = std::min<uint64_t>((bytes - sketch) / layout_.value_stride, kMaxRows - 1);
  while (low < high) {
    const uint64_t middle = low + (high - low + 1) / 2;
    if (bytes_of(middle) + sketch <= bytes)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

uint8_t Table::recency_clock(uint32_t partition) const {
  return static_cast<uint8_t>(bounds_[partition].made / recency_unit(share(partition)));
}

void Table::mark_new(uint32_t partition, const Row& row) const {
  uint8_t* mark = marks_of(row);
  if (spec_.bound.eviction != Eviction::kNone) {
    *mark = spec_.bound.eviction == Eviction::kRecency ? recency_clock(partition) : kFrequencyAtFirst;
    mark += layout_.mark_stride;
  }
  if (spec_.bound.ttl != 0) *mark = kUsed;
}

void Table::mark_used(uint32_t partition, const Row& row) const {
  uint8_t* mark = marks_of(row);
  if (spec_.bound.eviction != Eviction::kNone) {
    if (spec_.bound.eviction == Eviction::kRecency)
      *mark = recency_clock(partition);
    else if (*mark != 255)
      ++*mark;
    mark += layout_.mark_stride;
  }
  if (spec_.bound.ttl != 0) *mark = kUsed;
}

void Table::take(uint32_t part, const uint64_t* ids, const uint32_t* positions, size_t n, uint32_t* numbers,
                 uint64_t seconds) {
  Partition& p = parts_[part];
  PartitionBound& b = bounds_[part];
  const TableView t = view();
  std::vector<uint32_t> used, wanted;
  used.reserve(n);
  for (size_t k = 0; k < n; ++k) {
    if (numbers[positions[k]] != kNoRow)
      used.push_back(numbers[positions[k]]);
    else
      wanted.push_back(positions[k]);
  }
  expire(part, seconds, used);
  std::vector<char> records;
  const std::vector<Returning> back = read_cold(part, ids, &wanted, &records);
  if (layout_.marks != 0) {
    constexpr size_t kAhead = 8;
    for (size_t k = 0; k < used.size(); ++k) {
      if (k + kAhead < used.size()) __builtin_prefetch(row_at(t, views_[part], used[k + kAhead]).version, 1);
      mark_used(part, row_at(t, views_[part], used[k]));
    }
  }
  if (spec_.bound.sightings != 0) {
    if (b.sketch.bytes() == 0)
      replace_sketch(part, Sketch((spec_.bound.window + partitions() - 1) / partitions()));
    size_t kept = 0;
    for (uint32_t i : wanted)
      if (b.sketch.add(mix(ids[i]), partition_bits_) >= spec_.bound.sightings) wanted[kept++] = i;
    b.counts.refused += wanted.size() - kept;
    wanted.resize(kept);
  }
  const uint64_t most = share(part);
  make_room_for(part, back.size() + wanted.size(), used);
  enter_cold(part, ids, back, records, numbers);
  for (uint32_t i : wanted) {
    if (p.count < most || cold_) {
      const uint64_t had = p.count;
      find_or_create(ids[i], &numbers[i]);
      if (p.count == had) continue;
      ++b.counts.admitted;
      entered_one(part);
    } else {
      // One that the same pull names twice may be there by now.
      numbers[i] = find_number(views_[part], partition_bits_, mix(ids[i]));
      if (numbers[i] == kNoRow) ++b.counts.refused;
    }
  }
  if (cold_) cold_->compact(part);
  // Beside the rows it may take a byte of each, see `bytes_of`.
  if (4 * p.free_rows.capacity() > most && 4 * p.free_rows.size() < most) p.free_rows.shrink_to_fit();
}

void Table::make_room_for(uint32_t part, uint64_t entering, const std::vector<uint32_t>& spared) {
  const uint64_t most = share(part), rows = parts_[part].count + entering;
  if (rows <= most) return;
  const uint64_t batch = most / (cold_ ? kColdSlackParts : kSlackParts);
  const std::vector<Victim> gone = victims(part, rows - most + batch, spared);
  remove(part, gone);
  if (!cold_) bounds_[part].counts.evicted += gone.size();
}

// Counts a row that is in memory from now on. Recency: ages are kept within a byte. Frequency: counts are
// halved from time to time.
void Table::entered_one(uint32_t part) {
  PartitionBound& b = bounds_[part];
  ++b.made;
  const TableView t = view();
  const uint32_t rows = parts_[part].next_row;
  if (spec_.bound.eviction == Eviction::kRecency && b.made % (recency_unit(share(part)) * kClampEvery) == 0) {
    const uint8_t now = recency_clock(part);
    marks_age(part);
    for (uint32_t i = 0; i < rows; ++i) {
      uint8_t* mark = marks_of(row_at(t, views_[part], i));
      if (static_cast<uint8_t>(now - *mark) > kClampedAge) *mark = static_cast<uint8_t>(now - kClampedAge);
    }
  } else if (spec_.bound.eviction == Eviction::kFrequency && b.made % share(part) == 0) {
    marks_age(part);
    for (uint32_t i = 0; i < rows; ++i) {
      uint8_t* mark = marks_of(row_at(t, views_[part], i));
      *mark = static_cast<uint8_t>(*mark >> 1);
    }
  }
}

void Table::expire(uint32_t part, uint64_t seconds, const std::vector<uint32_t>& used) {
  const BoundSpec& spec = spec_.bound;
  if (spec.ttl == 0) return;
  PartitionBound& b = bounds_[part];
  const uint64_t tick = (spec.ttl_seconds ? seconds : b.step) / expiry_unit(spec);
  const uint64_t passed = b.tick == PartitionBound::kUnset || tick <= b.tick ? 0 : tick - b.tick;
  // Rows that came from elsewhere age from here on, and nothing says so.
  if (b.tick == PartitionBound::kUnset && parts_[part].count != 0) {
    b.removed = {{}, true};
    if (b.followed) b.followed->removed = {{}, true};
  }
  if (b.tick == PartitionBound::kUnset || tick > b.tick) b.tick = tick;
  if (passed == 0) return;
  if (b.swept == PartitionBound::kUnset) b.swept = tick;
  if (b.followed) {
    std::vector<uint64_t>& sweeps = b.followed->sweeps;
    if (sweeps.size() == Followed::kSweeps) sweeps.erase(sweeps.begin());
    sweeps.push_back(tick);
  }
  const TableView t = view();
  const uint32_t rows = parts_[part].next_row,
                 which = spec.eviction != Eviction::kNone ? layout_.mark_stride : 0;
  const uint64_t limit = expiry_limit(spec);
  std::vector<char> gone(rows);
  marks_age(part);
  for (uint32_t i : used) *(marks_of(row_at(t, views_[part], i)) + which) = kUsed;
  for (uint32_t i = 0; i < rows; ++i) {
    uint8_t* mark = marks_of(row_at(t, views_[part], i)) + which;
    const uint64_t age = *mark == kUsed ? 0 : *mark + passed;
    gone[i] = age > limit;
    if (!gone[i]) *mark = static_cast<uint8_t>(age);
  }
  std::vector<Victim> rows_gone;
  for_each_entry(
      part, [&](uint32_t number, uint32_t) { return gone[number] != 0; },
      [&](uint64_t h, uint32_t number) { rows_gone.push_back({h, number}); });
  std::sort(rows_gone.begin(), rows_gone.end(), [](const Victim& x, const Victim& y) { return x.id < y.id; });
  for (Victim& v : rows_gone) v.id = unmix(v.id);
  remove(part, rows_gone);
  b.counts.expired += rows_gone.size();
}

std::vector<Victim> Table::victims(uint32_t part, uint64_t n, const std::vector<uint32_t>& spared) const {
  // Marks are copied first, in the order in which they lie: the index speaks of rows in no order.
  constexpr uint16_t kSpared = 0xFFFF;
  const TableView t = view();
  const uint32_t rows = parts_[part].next_row;
  std::vector<uint16_t> warmth(rows);
  if (spec_.bound.eviction == Eviction::kRecency) {
    const uint8_t now = recency_clock(part);
    for (uint32_t i = 0; i < rows; ++i)
      warmth[i] = 255 - static_cast<uint8_t>(now - *marks_of(row_at(t, views_[part], i)));
  } else if (spec_.bound.eviction == Eviction::kFrequency) {
    for (uint32_t i = 0; i < rows; ++i) warmth[i] = *marks_of(row_at(t, views_[part], i));
  }
  for (uint32_t i : parts_[part].free_rows) warmth[i] = kSpared;
  for (uint32_t i : spared) warmth[i] = kSpared;
  uint64_t counts[256] = {};
  for (uint32_t i = 0; i < rows; ++i)
    if (warmth[i] != kSpared) ++counts[warmth[i]];
  uint16_t last = 0;  // the warmest that go, of which perhaps not all
  uint64_t colder = 0;
  while (last < 255 && colder + counts[last] < n) colder += counts[last++];
  struct Entry {
    uint16_t warmth;
    uint64_t turn;  // among equals
    uint32_t number;
  };
  std::vector<Entry> chosen;
  auto choose = [&](uint32_t most) {  // with those of the last warmth whose turn begins with `most` or less
    chosen.clear();
    for_each_entry(
        part,
        [&](uint32_t number, uint32_t turn) {
          const uint16_t w =
              warmth[number];  // without branches: they would be guessed wrong every other time
          return static_cast<bool>(static_cast<int>(w < last) |
                                   (static_cast<int>(w == last) & static_cast<int>(turn <= most)));
        },
        [&](uint64_t h, uint32_t number) { chosen.push_back({warmth[number], std::rotl(h, 32), number}); });
  };
  // Counts of uses have many equals. Their turns lie evenly, so it is known about how far those that go
  // reach, and only these are looked at.
  const uint64_t equal = n - std::min(n, colder);
  const double reach = (static_cast<double>(equal) + 8 * std::sqrt(static_cast<double>(equal)) + 8) /
                       static_cast<double>(std::max<uint64_t>(counts[last], 1));
  const uint32_t most = reach < 1 ? static_cast<uint32_t>(std::ldexp(reach, 32)) : ~uint32_t{0};
  choose(most);
  if (most != ~uint32_t{0} && chosen.size() < n) choose(~uint32_t{0});
  auto before = [](const Entry& x, const Entry& y) {
    return x.warmth != y.warmth ? x.warmth < y.warmth : x.turn < y.turn;
  };
  if (chosen.size() > n) {
    std::nth_element(chosen.begin(), chosen.begin() + static_cast<ptrdiff_t>(n), chosen.end(), before);
    chosen.resize(n);
  }
  std::sort(chosen.begin(), chosen.end(), before);
  std::vector<Victim> out;
  out.reserve(chosen.size());
  for (const Entry& e : chosen) out.push_back({unmix(std::rotl(e.turn, 32)), e.number});
  return out;
}

void Table::remove(uint32_t part, const std::vector<Victim>& rows) {
  if (rows.empty()) return;
  Partition& p = parts_[part];
  p.free_rows.reserve(p.free_rows.size() + rows.size());
  if (sink_) {
    const TableView t = view();
    std::vector<Row> handed;
    handed.reserve(rows.size());
    for (const Victim& v : rows) handed.push_back(row_at(t, views_[part], v.number));
    sink_(part, rows.data(), handed.data(), rows.size());
  }
  if (!cold_) {  // what goes to disk stays
    PartitionBound& b = bounds_[part];
    if (keeps_removals_) note_removals(part, rows, &b.removed);
    if (b.followed) note_removals(part, rows, &b.followed->removed);
  }
  if (cuts_[part] && !cold_) keep_for_cut(part, rows);
  for (const Victim& v : rows) unlink(part, mix(v.id));
  p.removed_at = generation_;
  publish(part);
}

void Table::note_removals(uint32_t part, const std::vector<Victim>& rows, Removals* to) const {
  Removals& removed = *to;
  const uint64_t most = std::max(kRemovedLeast, parts_[part].count / 2);
  if (!removed.lost && removed.ids.size() + rows.size() <= most) {
    try {
      for (const Victim& v : rows) removed.ids.push_back(v.id);
      return;
    } catch (const std::bad_alloc&) {
      // Whoever asks must look at all rows.
    }
  }
  removed = {{}, true};
}

void Table::make_room(uint32_t part) {
  if (parts_[part].count < share(part)) return;
  make_room_for(part, 1, {});
  if (cold_) cold_->compact(part);
}

// ---- the cold tier
// ---------------------------------------------------------------------------------------------------

void Table::open_cold(const std::string& folder, const std::string& name) {
  cold_ = std::make_unique<ColdTier>(layout_, partition_bits_, arena_, folder, name);
  set_sink([this](uint32_t part, const Victim* victims, const Row* rows, size_t n) {
    cold_->append(part, victims, rows, n);
  });
}

bool Table::is_cold(uint64_t id) const {
  if (!cold_) return false;
  std::vector<uint64_t> offsets;
  cold_->locate(partition_of(id), id, &offsets);
  if (offsets.empty()) return false;
  std::vector<char> record(cold_->record_bytes());
  uint32_t slot;
  return cold_->read(partition_of(id), id, record.data(), &slot);
}

// Takes those that are cold out of `wanted`.
std::vector<Table::Returning> Table::read_cold(uint32_t part, const uint64_t* ids,
                                               std::vector<uint32_t>* wanted,
                                               std::vector<char>* records) const {
  std::vector<Returning> back;
  if (!cold_ || cold_->rows(part) == 0) return back;
  const size_t bytes = cold_->record_bytes();
  constexpr size_t kAhead = 4;
  size_t kept = 0;
  for (size_t k = 0; k < wanted->size(); ++k) {
    if (k + kAhead < wanted->size()) cold_->prefetch_index(part, ids[(*wanted)[k + kAhead]]);
    const uint32_t i = (*wanted)[k];
    if (records->size() < (back.size() + 1) * bytes) records->resize(2 * records->size() + bytes);
    uint32_t slot;
    if (cold_->read(part, ids[i], records->data() + back.size() * bytes, &slot))
      back.push_back({i, slot});
    else
      (*wanted)[kept++] = i;
  }
  wanted->resize(kept);
  return back;
}

void Table::enter_cold(uint32_t part, const uint64_t* ids, const std::vector<Returning>& rows,
                       std::vector<char>& records, uint32_t* numbers) {
  for (size_t k = 0; k < rows.size(); ++k) {
    const uint64_t id = ids[rows[k].position];
    bool inserted;
    const Row row = find_or_insert(id, &inserted, &numbers[rows[k].position]);
    if (!inserted) continue;  // one that the same pull names twice
    const Row from = cold_->row_in(records.data() + k * cold_->record_bytes());
    std::memcpy(row.values, from.values, layout_.value_bytes);
    if (layout_.state_floats != 0) std::memcpy(row.state, from.state, layout_.state_bytes());
    *row.version = *from.version;
    cold_->forget(part, id, rows[k].slot, true);
    entered_one(part);
  }
}

void Table::bring_back(uint32_t part, const uint64_t* ids, const std::vector<uint32_t>& positions,
                       uint32_t* numbers) {
  std::vector<uint32_t> wanted = positions;
  std::vector<char> records;
  const std::vector<Returning> back = read_cold(part, ids, &wanted, &records);
  make_room_for(part, back.size(), {});
  enter_cold(part, ids, back, records, numbers);
  cold_->compact(part);
}

BoundCounts Table::bound_counts() const {
  BoundCounts sum;
  for (const PartitionBound& b : bounds_) sum += b.counts;
  return sum;
}

bool Table::awaits_admission(uint64_t id) const {
  if (spec_.bound.sightings == 0) return false;
  const Sketch& sketch = bounds_[partition_of(id)].sketch;
  return sketch.bytes() == 0 || sketch.count(mix(id), partition_bits_) < spec_.bound.sightings;
}

void Table::export_marks(uint32_t part, const Row& row, uint8_t* out) const {
  const uint8_t* mark = marks_of(row);
  const uint32_t marks = exported_marks();
  for (uint32_t k = 0; k < marks; ++k) out[k] = mark[size_t{k} * layout_.mark_stride];
  if (marks != 0 && spec_.bound.eviction == Eviction::kRecency)
    out[0] = static_cast<uint8_t>(recency_clock(part) - out[0]);
}

void Table::import_marks(uint32_t part, const Row& row, const uint8_t* marks) {
  uint8_t* mark = marks_of(row);
  const uint32_t n = exported_marks();
  for (uint32_t k = 0; k < n; ++k) mark[size_t{k} * layout_.mark_stride] = marks[k];
  if (n != 0 && spec_.bound.eviction == Eviction::kRecency)
    *mark = static_cast<uint8_t>(recency_clock(part) - marks[0]);
}

namespace {
// As docs/formats/rows.md has it: before the counters of the sketch.
struct BoundState {
  uint32_t version, partition, partitions;
  // Units of expiry since the first sweep, where it is for `advance_bound`; of versions 2 and 3 the number of
  // ticks of sweeps, u64, that follow.
  uint32_t since;
  uint64_t made, step, tick, admitted, evicted, expired, refused, window, seen;
};
static_assert(sizeof(BoundState) == 88);
constexpr uint32_t kState = 1, kClocks = 2, kClocksAndAll = 3;
}  // namespace

std::string Table::bound_head(uint32_t part, uint32_t version, uint32_t more) const {
  const PartitionBound& b = bounds_[part];
  const BoundCounts& c = b.counts;
  const BoundState state = {version,
                            part,
                            partitions(),
                            more,
                            cold_ ? c.admitted : b.made,  // not which rows were on disk
                            b.step,
                            b.tick,
                            c.admitted,
                            c.evicted,
                            c.expired,
                            c.refused,
                            b.sketch.window(),
                            b.sketch.seen()};
  return {reinterpret_cast<const char*>(&state), sizeof state};
}

std::string Table::export_head(uint32_t part) const { return bound_head(part, kState, 0); }

std::string Table::export_bound(uint32_t part) const {
  const Sketch& sketch = bounds_[part].sketch;
  return export_head(part).append(sketch.data() == nullptr ? "" : sketch.data(), sketch.bytes());
}

bool Table::import_bound(uint32_t part, const char* data, size_t bytes) {
  BoundState state;
  if (bytes < sizeof state) return false;
  std::memcpy(&state, data, sizeof state);
  if (state.partition != part || state.partitions != partitions()) return false;
  if (state.version == kClocks || state.version == kClocksAndAll) return go_on(part, data, bytes);
  if (state.version != kState) return false;
  PartitionBound& b = bounds_[part];
  b.made = state.made, b.step = state.step, b.tick = state.tick;
  b.counts = {state.admitted, state.evicted, state.expired, state.refused};
  if (b.followed) b.followed->removed = {{}, true};  // marks were relative to other clocks
  assign_sketch(part, state.window, state.seen, data + sizeof state, bytes - sizeof state);
  return true;
}

void Table::assign_sketch(uint32_t part, uint64_t window, uint64_t seen, const char* counters, size_t bytes) {
  const uint64_t own = (spec_.bound.window + partitions() - 1) / partitions();
  if (spec_.bound.sightings == 0 || window != own || seen > own) return;
  Sketch sketch(own);
  if (sketch.bytes() != bytes) return;
  sketch.assign(counters, seen);
  replace_sketch(part, std::move(sketch));
}

Removals Table::take_followed(uint32_t part) {
  PartitionBound& b = bounds_[part];
  return b.followed ? std::exchange(b.followed->removed, {}) : Removals{{}, true};
}

void Table::follow(uint32_t part) {
  auto followed = std::make_unique<Followed>();
  followed->sweeps.reserve(Followed::kSweeps);
  bounds_[part].followed = std::move(followed);
}

std::string Table::export_clocks(uint32_t part, bool whole) const {
  const PartitionBound& b = bounds_[part];
  const size_t sweeps = b.followed ? b.followed->sweeps.size() : 0;
  std::string out = bound_head(part, whole ? kClocksAndAll : kClocks, static_cast<uint32_t>(sweeps));
  if (sweeps != 0) out.append(reinterpret_cast<const char*>(b.followed->sweeps.data()), 8 * sweeps);
  if (whole && b.sketch.data() != nullptr) out.append(b.sketch.data(), b.sketch.bytes());
  return out;
}

bool Table::go_on(uint32_t part, const char* data, size_t bytes) {
  BoundState state;
  std::memcpy(&state, data, sizeof state);
  if (state.since > Followed::kSweeps || bytes - sizeof state < size_t{8} * state.since) return false;
  std::vector<uint64_t> sweeps(state.since);
  const size_t head = sizeof state + size_t{8} * state.since;
  if (state.since != 0) std::memcpy(sweeps.data(), data + sizeof state, size_t{8} * state.since);
  PartitionBound& b = bounds_[part];
  const uint64_t made = b.made, tick = b.tick;
  // Clocks go forward, and sweeps were before now.
  if (state.made < made || (tick != PartitionBound::kUnset && state.tick < tick)) return false;
  if (std::any_of(sweeps.begin(), sweeps.end(), [&](uint64_t s) { return s > state.tick; })) return false;
  b.made = state.made, b.step = state.step, b.tick = state.tick;
  if (state.version == kClocksAndAll) {
    b.counts = {state.admitted, state.evicted, state.expired, state.refused};
    assign_sketch(part, state.window, state.seen, data + head, bytes - head);
  }
  // Rows that had been used since the last sweep were of age 0 at the first one behind `tick`.
  const auto first = std::find_if(sweeps.begin(), sweeps.end(), [&](uint64_t s) { return s > tick; });
  age_marks(part, made, tick, first == sweeps.end() ? 0 : b.tick - *first);
  return true;
}

Removals Table::take_removals(uint32_t part, std::string* bound) {
  PartitionBound& b = bounds_[part];
  *bound = export_bound(part);
  if (b.swept != PartitionBound::kUnset) {
    const auto since = static_cast<uint32_t>(std::min<uint64_t>(b.tick - b.swept, ~uint32_t{0}));
    std::memcpy(bound->data() + offsetof(BoundState, since), &since, sizeof since);
    b.swept = PartitionBound::kUnset;
  }
  return std::exchange(b.removed, {});
}

bool Table::advance_bound(uint32_t part, const char* data, size_t bytes) {
  const uint64_t made = bounds_[part].made, tick = bounds_[part].tick;
  if (!import_bound(part, data, bytes)) return false;
  BoundState state;
  std::memcpy(&state, data, sizeof state);
  age_marks(part, made, tick, state.since);
  return true;
}

// What `entered_one` and `expire` have done, from (made, tick) to what the partition is at now, to rows that
// were not used meanwhile.
void Table::age_marks(uint32_t part, uint64_t made, uint64_t tick, uint64_t since) {
  if (exported_marks() == 0) return;
  marks_age(part);
  const PartitionBound& b = bounds_[part];
  const Eviction eviction = spec_.bound.eviction;
  const uint64_t most = std::max<uint64_t>(share(part), 1), unit = recency_unit(share(part));
  // Times that marks were clamped or halved.
  const uint64_t step = eviction == Eviction::kRecency ? unit * kClampEvery : most;
  const bool aged = eviction != Eviction::kNone && b.made / step > made / step;
  const uint64_t clamped = b.made / step * kClampEvery,
                 halved = std::min<uint64_t>(b.made / step - made / step, 8);
  const bool swept = spec_.bound.ttl != 0 && tick != PartitionBound::kUnset &&
                     b.tick != PartitionBound::kUnset && b.tick > tick;
  if (!aged && !swept) return;
  const TableView t = view();
  for (uint32_t i = 0; i < parts_[part].next_row; ++i) {
    uint8_t* mark = marks_of(row_at(t, views_[part], i));
    if (aged && eviction == Eviction::kRecency) {
      const uint64_t age = static_cast<uint8_t>(made / unit - *mark) + (clamped - made / unit);
      *mark = static_cast<uint8_t>(clamped - std::min<uint64_t>(age, kClampedAge));
    } else if (aged) {
      *mark = static_cast<uint8_t>(*mark >> halved);
    }
    if (!swept) continue;
    if (eviction != Eviction::kNone) mark += layout_.mark_stride;
    const uint64_t age = *mark == kUsed ? since : *mark + (b.tick - tick);
    *mark = static_cast<uint8_t>(std::min<uint64_t>(age, kUsed - 1));
  }
}

void export_row(const TableSpec& spec, const Row& row, uint8_t* values, float* state) {
  const uint32_t floats = state_floats(spec.optimizer, spec.dim);
  std::memcpy(values, row.values, stored_bytes(spec.format, spec.dim));
  if (floats != 0) std::memcpy(state, row.state, size_t{4} * floats);
  if (exported_words(spec) != floats) state[floats] = std::bit_cast<float>(uint32_t{*row.version});
}

}  // namespace satrap
