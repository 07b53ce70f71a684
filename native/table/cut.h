// What a bounded table must remember to be read as it was at one moment while it goes on: of rows that nobody
// has named since, values and state are what they were, but marks have aged, and rules may have removed them.
// Rows that are named are set aside by whoever reads (ps/cut.py).
#pragma once
#include <cstdint>
#include <vector>

namespace satrap {

struct CutRows {
  std::vector<uint64_t> ids;
  std::vector<uint8_t> values, marks;
  std::vector<float> state;
};

struct PartitionCut {
  std::vector<uint8_t> marks;  // by row number, as files have them
  CutRows gone;                // removed by a rule since they were last asked for
  bool lost = false;           // there was no memory for them
};

}  // namespace satrap
