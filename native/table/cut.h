// What a bounded table must remember to be read as it was at one moment while it goes on: of rows that nobody
// has named since, values and state are what they were, but marks have aged, and rules may have removed them.
// Rows that are named are set aside by whoever reads (ps/cut.py).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "table/sketch.h"

namespace satrap {

struct CutRows {
  std::vector<uint64_t> ids;
  std::vector<uint8_t> values, marks;
  std::vector<float> state;
};

struct PartitionCut {
  uint8_t clock = 0;  // of recency, at the cut
  uint32_t rows = 0;  // row numbers below this were given out then
  bool aged =
      false;  // marks are those of then, as files have them, by row number; before: what they are in the rows
  std::vector<uint8_t> marks;
  std::string head;  // what `export_bound` gives, without the counters of the sketch
  SketchCut sketch;
  CutRows gone;       // removed by a rule since they were last asked for
  bool lost = false;  // there was no memory for them, or for the marks
};

}  // namespace satrap
