// Rows that come many at once: from files, or from another server.
#include <algorithm>
#include <bit>
#include <cstring>

#include "table/probe.h"
#include "table/table.h"

namespace satrap {
namespace {
// Rows on which each stage works before the next one does: their lines in the index, and then they
// themselves, are asked for all at once.
constexpr size_t kAtOnce = 256;
}  // namespace

void Table::import_rows(uint32_t part, const RowsOfPartition& rows) {
  // In the order of their mix rows would crowd a growing index at its one end.
  if (parts_[part].count == 0 && rows.n > kAtOnce) reserve_index(part, rows.n);
  for (size_t begin = 0; begin < rows.n; begin += kAtOnce) {
    const RowsOfPartition some = rows.from(begin, std::min(kAtOnce, rows.n - begin));
    const bool room = parts_[part].count + some.n <= share(part);
    if (!bounded() || (room && (cold_ == nullptr || cold_->rows(part) == 0)))
      import_few(part, some);
    else
      for (size_t i = 0; i < some.n; ++i) import_one(part, some.from(i, 1));
  }
}

void Table::import_few(uint32_t part, const RowsOfPartition& rows) {
  const PartitionView& v = views_[part];
  const uint64_t* ids = rows.of->ids;
  uint64_t h[kAtOnce];
  uint32_t numbers[kAtOnce];
  for (size_t i = 0; i < rows.n; ++i) {
    h[i] = mix(ids[rows.at(i)]);
    __builtin_prefetch(chunk_at(v, home_chunk(h[i], partition_bits_, v.chunks)), 1);
  }
  size_t missing = 0;
  bool ascending = true;  // so that none is there twice
  for (size_t i = 0; i < rows.n; ++i) {
    numbers[i] = find_number(v, partition_bits_, h[i]);
    missing += numbers[i] == kNoRow;
    ascending &= i == 0 || h[i - 1] < h[i];
  }
  if (missing < rows.n) {
    const TableView t = view();
    for (size_t i = 0; i < rows.n; ++i) {
      if (numbers[i] == kNoRow) continue;
      const char* values = values_at(t, v, numbers[i]);
      for (uint32_t at = 0; at < layout_.value_stride; at += RowLayout::kLine)
        __builtin_prefetch(values + at, 1);
    }
  }
  bool made[kAtOnce] = {};
  size_t entered = 0;
  const auto finish = [&] {
    if (missing != 0) publish(part);
    if (layout_.marks != 0)
      for (size_t i = 0; i < entered; ++i)
        if (made[i]) mark_new(part, row_at(view(), v, numbers[i]));
    write_rows(part, rows.from(0, entered), numbers);
  };
  try {
    if (missing != 0) make_way(part, missing);
    for (; entered < rows.n; ++entered) {
      uint32_t& number = numbers[entered];
      if (number == kNoRow && !ascending) number = find_number(v, partition_bits_, h[entered]);
      if (number != kNoRow) continue;
      number = enter(part, h[entered]);
      made[entered] = true;
      if (!ascending) publish(part);
    }
  } catch (...) {
    finish();
    throw;
  }
  finish();
}

void Table::import_one(uint32_t part, const RowsOfPartition& row) {
  const uint64_t id = row.of->ids[row.at(0)];
  if (!find(id)) {
    if (cold_) cold_->erase(part, id);
    make_room(part);
  }
  bool inserted;
  uint32_t number;
  find_or_insert(id, &inserted, &number);
  write_rows(part, row, &number);
}

void Table::write_rows(uint32_t part, const RowsOfPartition& rows, const uint32_t* numbers) {
  const TableView t = view();
  const PartitionView& v = views_[part];
  const size_t bytes = stored_bytes(spec_.format, layout_.dim);
  // Rows of an empty partition come to lie one behind the other, as they lie in what is imported.
  const bool side_by_side = layout_.value_stride == bytes && rows.order == nullptr;
  const uint32_t last = (1u << value_shift_) - 1;  // of a block
  for (size_t i = 0, next; i < rows.n; i = next) {
    const uint32_t first = numbers[i];
    const size_t left = last - (first & last);
    for (next = i + 1;
         side_by_side && next < rows.n && next - i <= left && numbers[next] == first + (next - i);)
      ++next;
    std::memcpy(values_at(t, v, first), rows.of->values + rows.at(i) * bytes, (next - i) * bytes);
  }
  const uint32_t floats = layout_.state_floats, words = exported_words(spec_), marks = exported_marks();
  for (size_t i = 0; i < rows.n; ++i) {
    const Row row = row_at(t, v, numbers[i]);
    const float* state = rows.of->state + rows.at(i) * words;
    if (floats == 1)
      std::memcpy(row.state, state, 4);
    else if (floats != 0)
      std::memcpy(row.state, state, size_t{4} * floats);
    *row.version = words == floats ? 0 : static_cast<uint8_t>(std::bit_cast<uint32_t>(state[floats]));
    if (rows.of->marks != nullptr && marks != 0) import_marks(part, row, rows.of->marks + rows.at(i) * marks);
  }
}

}  // namespace satrap
