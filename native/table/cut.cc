// See cut.h.
#include "table/cut.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "table/probe.h"
#include "table/table.h"

namespace satrap {

void Table::open_cut(uint32_t part) {
  auto cut = std::make_unique<PartitionCut>();
  cut->clock = recency_clock(part);
  cut->rows = parts_[part].next_row;
  cut->head = export_head(part);
  Sketch& sketch = bounds_[part].sketch;
  cut->sketch = SketchCut(sketch.bytes());
  sketch.keep_in(&cut->sketch);
  cuts_[part] = std::move(cut);
}

void Table::close_cut(uint32_t part) {
  bounds_[part].sketch.keep_in(nullptr);
  cuts_[part].reset();
}

size_t Table::cut_bytes() const {
  size_t rows = 0, counters = 0;
  for (const auto& cut : cuts_) {
    if (!cut) continue;
    rows += cut->rows;
    counters += cut->sketch.bytes();
  }
  return rows * exported_marks() + counters;
}

std::string Table::cut_bound(uint32_t part) const {
  const PartitionCut* cut = cuts_[part].get();
  if (cut == nullptr) return {};
  std::string out = cut->head;
  out.resize(out.size() + cut->sketch.bytes());
  cut->sketch.read(bounds_[part].sketch.data(), out.data() + cut->head.size());
  return out;
}

void Table::replace_sketch(uint32_t part, Sketch sketch) {
  if (cuts_[part] && cuts_[part]->sketch.bytes() != 0)
    cuts_[part]->sketch.keep_all(bounds_[part].sketch.data());
  bounds_[part].sketch = std::move(sketch);
}

void Table::marks_age(uint32_t part) {
  PartitionCut* cut = cuts_[part].get();
  if (cut == nullptr || cut->aged || exported_marks() == 0) return;
  const size_t marks = exported_marks();
  try {
    cut->marks.resize(marks * cut->rows);
  } catch (const std::bad_alloc&) {
    cut->lost = true;
  }
  for (uint32_t i = 0; i < cut->rows && !cut->lost; ++i) cut_marks_of(part, i, cut->marks.data() + i * marks);
  cut->aged = true;
}

void Table::cut_marks(const uint64_t* ids, size_t n, uint8_t* out) const {
  constexpr size_t kAhead = 8;
  for (size_t i = 0; i < n; ++i) {
    if (i + kAhead < n) prefetch(ids[i + kAhead]);
    const uint32_t part = partition_of(ids[i]);
    const uint32_t number = find_number(views_[part], partition_bits_, mix(ids[i]));
    if (number != kNoRow) cut_marks_of(part, number, out + i * exported_marks());
  }
}

void Table::cut_marks_of(uint32_t part, uint32_t number, uint8_t* out) const {
  const size_t marks = exported_marks();
  const PartitionCut* cut = cuts_[part].get();
  if (marks == 0) return;
  if (cut == nullptr || cut->lost || number >= cut->rows) {
    std::memset(out, 0, marks);
  } else if (cut->aged) {
    std::memcpy(out, cut->marks.data() + number * marks, marks);
  } else {
    const uint8_t* mark = marks_of(row_at(view(), views_[part], number));
    for (size_t k = 0; k < marks; ++k) out[k] = mark[k * layout_.mark_stride];
    if (spec_.bound.eviction == Eviction::kRecency) out[0] = static_cast<uint8_t>(cut->clock - out[0]);
  }
}

void Table::keep_for_cut(uint32_t part, const std::vector<Victim>& rows) {
  PartitionCut& cut = *cuts_[part];
  if (cut.lost) return;  // whoever reads will be told
  CutRows& gone = cut.gone;
  const size_t had = gone.ids.size(), n = had + rows.size(), marks = exported_marks();
  const size_t bytes = stored_bytes(spec_.format, spec_.dim), words = exported_words(spec_);
  try {
    gone.ids.resize(n);
    gone.values.resize(n * bytes);
    gone.state.resize(n * words);
    gone.marks.resize(n * marks);
  } catch (const std::bad_alloc&) {
    gone = {};
    cut.lost = true;
    return;
  }
  const TableView t = view();
  for (size_t i = 0; i < rows.size(); ++i) {
    const size_t at = had + i;
    gone.ids[at] = rows[i].id;
    export_row(spec_, row_at(t, views_[part], rows[i].number), gone.values.data() + at * bytes,
               gone.state.data() + at * words);
    if (marks != 0) cut_marks_of(part, rows[i].number, gone.marks.data() + at * marks);
  }
}

bool Table::take_cut_rows(CutRows* out) {
  const auto add = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
  bool whole = true;
  for (const auto& cut : cuts_) {
    if (!cut) continue;
    whole &= !cut->lost;
    if (cut->gone.ids.empty()) continue;
    add(out->ids, cut->gone.ids);
    add(out->values, cut->gone.values);
    add(out->state, cut->gone.state);
    add(out->marks, cut->gone.marks);
    cut->gone = {};
  }
  return whole;
}

}  // namespace satrap
