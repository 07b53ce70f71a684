#include "table/table.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
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

// Fill at which an index grows: 7/8 of its slots. It then grows by a quarter, so fill stays within 0.70 and
// 0.875.
// A small one grows by half: its slack is little, and it grows less often.
constexpr uint32_t kSmallIndex = 4096;
uint64_t index_limit(uint64_t chunks) { return chunks * Chunk::kSlots * 7 / 8; }
}  // namespace

Table::Table(const TableSpec& spec, int partition_bits, Arena* arena)
    : spec_(spec),
      layout_(spec),
      partition_bits_(partition_bits),
      parts_(size_t{1} << partition_bits),
      views_(size_t{1} << partition_bits) {
  for (Partition& p : parts_) {
    p.chunk_list.configure(arena, sizeof(Chunk), kChunkBlockBytes);
    p.row_list.configure(arena, layout_.stride, kRowBlockBytes);
  }
  row_shift_ = parts_[0].row_list.shift();
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

TableView Table::view() const { return {views_.data(), partition_bits_, row_shift_, layout_, &spec_}; }

uint32_t Table::partition_of(uint64_t id) const {
  return partition_bits_ == 0 ? 0 : static_cast<uint32_t>(mix(id) >> (64 - partition_bits_));
}

void Table::publish(uint32_t partition) {
  const Partition& p = parts_[partition];
  views_[partition] = {p.chunk_list.blocks(), p.row_list.blocks(), p.chunks, p.next_row};
}

// A list that could only grow in part has still moved: readers must see where it is now.
void Table::reserve(uint32_t partition, BlockList* list, size_t n) {
  try {
    list->reserve(n);
  } catch (...) {
    publish(partition);
    throw;
  }
}

void Table::prefetch(uint64_t id) const {
  const uint64_t h = mix(id);
  const PartitionView& p = views_[partition_of(id)];
  if (p.chunks != 0) __builtin_prefetch(chunk_at(p, home_chunk(h, partition_bits_, p.chunks)), 1);
}

char* Table::find(uint64_t id) const {
  const uint64_t h = mix(id);
  return find_row(view(), views_[partition_of(id)], h);
}

char* Table::find_or_create(uint64_t id, uint32_t* number) {
  bool inserted;
  char* row = find_or_insert(id, &inserted, number);
  if (!inserted) return row;
  char* values = row + RowLayout::kHeader;
  auto* state = reinterpret_cast<float*>(row + layout_.state_offset());
  if (spec_.format == ValueFormat::kFp32) {
    kernels().initialize(spec_, id, reinterpret_cast<float*>(values), state);
  } else {
    float first[kMaxDim];
    kernels().initialize(spec_, id, first, state);
    kernels().encode(spec_.format, first, values, layout_.dim);
  }
  return row;
}

char* Table::find_or_insert(uint64_t id, bool* inserted, uint32_t* number_out) {
  const uint64_t h = mix(id);
  const uint32_t part = partition_of(id);
  *inserted = false;
  if (char* row = find_row(view(), views_[part], h, number_out)) return row;
  Partition& p = parts_[part];
  if (p.count >= index_limit(p.chunks))
    grow_index(part, p.chunks + std::max(1u, p.chunks / (p.chunks < kSmallIndex ? 2 : 4)));
  uint32_t number;
  if (!p.free_rows.empty()) {
    number = p.free_rows.back();
    p.free_rows.pop_back();
  } else {
    if (p.next_row >= kMaxRows)
      throw std::length_error("a partition is full (2^32 rows); use more partitions");
    reserve(part, &p.row_list, size_t{p.next_row} + 1);
    number = p.next_row++;
  }
  link(part, h, number);
  ++p.count;
  publish(part);
  char* row = row_at(view(), views_[part], number);
  const uint64_t header = h & ~uint64_t{0xFF};  // version 0
  std::memcpy(row, &header, 8);
  if (number_out != nullptr) *number_out = number;
  *inserted = true;
  return row;
}

void Table::reserve_rows(uint64_t rows, const std::vector<bool>* wanted) {
  // Partitions hold about the same share; two in a hundred more leaves room for chance, and growth for the
  // rest.
  const uint64_t share = rows / parts_.size() + rows / parts_.size() / 50 + 16;
  const uint64_t chunks = share * 8 / (7 * Chunk::kSlots) + 1;
  if (chunks > kMaxRows / Chunk::kSlots)
    throw std::length_error("a partition would be full (2^32 rows); use more partitions");
  for (uint32_t p = 0; p < partitions(); ++p)
    if (chunks > parts_[p].chunks && (wanted == nullptr || (*wanted)[p]))
      grow_index(p, static_cast<uint32_t>(chunks));
}

// Enters a row number under h; there is room (the index is below its limit).
void Table::link(uint32_t partition, uint64_t h, uint32_t row) {
  Partition& p = parts_[partition];
  uint32_t c = home_chunk(h, partition_bits_, p.chunks);
  for (;;) {
    Chunk& chunk = *reinterpret_cast<Chunk*>(p.chunk_list.at(c));
    if (chunk.occupied != (1u << Chunk::kSlots) - 1) {
      const int slot = __builtin_ctz(~uint32_t{chunk.occupied});
      chunk.tag[slot] = static_cast<uint8_t>(h);
      chunk.row[slot] = row;
      chunk.occupied = static_cast<uint16_t>(chunk.occupied | (1u << slot));
      return;
    }
    if (chunk.overflow != 255) ++chunk.overflow;
    if (++c == p.chunks) c = 0;
  }
}

// Every entry of a partition, in the order of the index (nearly that of h).
void Table::collect(uint32_t partition, std::vector<Entry>* out) const {
  const Partition& p = parts_[partition];
  const TableView t = view();
  const PartitionView& v = views_[partition];
  out->clear();
  out->reserve(p.count);
  constexpr uint32_t kAhead = 2;  // chunks: about 20 rows on their way
  auto prefetch = [&](uint32_t c) {
    const Chunk& chunk = *chunk_at(v, c);
    for (uint32_t m = chunk.occupied; m; m &= m - 1)
      __builtin_prefetch(row_at(t, v, chunk.row[__builtin_ctz(m)]));
  };
  for (uint32_t c = 0; c < std::min(kAhead, p.chunks); ++c) prefetch(c);
  for (uint32_t c = 0; c < p.chunks; ++c) {
    if (c + kAhead < p.chunks) prefetch(c + kAhead);
    const Chunk& chunk = *chunk_at(v, c);
    for (uint32_t m = chunk.occupied; m; m &= m - 1) {
      const int slot = __builtin_ctz(m);
      const uint64_t header = load_header(row_at(t, v, chunk.row[slot]));
      out->push_back({(header & ~uint64_t{0xFF}) | chunk.tag[slot], chunk.row[slot]});
    }
  }
}

void Table::grow_index(uint32_t partition, uint32_t chunks) {
  Partition& p = parts_[partition];
  std::vector<Entry> entries;
  if (p.chunks != 0) collect(partition, &entries);
  reserve(partition, &p.chunk_list, chunks);
  p.chunks = chunks;
  const size_t per_block = size_t{1} << kChunkShift;
  for (size_t c = 0; c < chunks; c += per_block)
    std::memset(p.chunk_list.at(c), 0, std::min(per_block, chunks - c) * sizeof(Chunk));
  for (const Entry& e : entries) link(partition, e.h, e.row);
  publish(partition);
}

bool Table::erase(uint64_t id) {
  const uint64_t h = mix(id);
  const uint32_t part = partition_of(id);
  Partition& p = parts_[part];
  if (p.chunks == 0) return false;
  const TableView t = view();
  const PartitionView& v = views_[part];
  const uint32_t home = home_chunk(h, partition_bits_, p.chunks);
  uint32_t c = home;
  do {
    Chunk& chunk = *chunk_at(v, c);
    for (uint32_t m = match_tags(chunk, static_cast<uint8_t>(h)); m; m &= m - 1) {
      const int slot = __builtin_ctz(m);
      if (!same_id(row_at(t, v, chunk.row[slot]), h)) continue;
      p.free_rows.push_back(chunk.row[slot]);
      ++generation_;
      chunk.occupied = static_cast<uint16_t>(chunk.occupied & ~(1u << slot));
      --p.count;
      // The chunks it had passed on its way here count one row less, unless they had lost count.
      for (uint32_t b = home; b != c; b = b + 1 == p.chunks ? 0 : b + 1) {
        Chunk& passed = *chunk_at(v, b);
        if (passed.overflow != 255) --passed.overflow;
      }
      return true;
    }
    if (chunk.overflow == 0) return false;
    if (++c == p.chunks) c = 0;
  } while (c != home);
  return false;
}

void Table::clear() {
  ++generation_;
  for (uint32_t i = 0; i < partitions(); ++i) {
    Partition& p = parts_[i];
    p.chunk_list.clear();
    p.row_list.clear();
    p.free_rows.clear();
    p.free_rows.shrink_to_fit();
    p.chunks = p.next_row = 0;
    p.count = 0;
    publish(i);
  }
}

void Table::visit_ordered(uint32_t partition,
                          const std::function<void(uint64_t id, const char* row)>& visit) const {
  std::vector<Entry> entries;
  collect(partition, &entries);
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.h < b.h; });
  const TableView t = view();
  for (size_t i = 0; i < entries.size(); ++i) {
    if (i + 8 < entries.size()) __builtin_prefetch(row_at(t, views_[partition], entries[i + 8].row));
    visit(unmix(entries[i].h), row_at(t, views_[partition], entries[i].row));
  }
}

TableSize Table::size() const {
  TableSize s;
  uint64_t held = 0;
  for (const Partition& p : parts_) {
    s.rows += p.count;
    held += p.chunk_list.bytes() + p.row_list.bytes() + 4 * p.free_rows.capacity();
  }
  s.value_bytes = s.rows * layout_.value_bytes;
  s.state_bytes = s.rows * 4 * layout_.state_floats;
  s.overhead_bytes = held - s.value_bytes - s.state_bytes;
  return s;
}

}  // namespace satrap
