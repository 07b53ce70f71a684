// Rows as they are exported, from one table's formats to another's.
#pragma once
#include <cstdint>

#include "table/spec.h"

namespace satrap {

// Values and state of one row, as a table of `from` exports them, into what a table of `to` imports. Rounded
// to the nearest where `to` has fewer bits; formats that are the same are copied as bits. The specs have one
// dim and one kind of optimizer, both or neither with momentum.
void convert_row(const TableSpec& from, const TableSpec& to, const uint8_t* values, const float* state,
                 uint8_t* new_values, float* new_state);

}  // namespace satrap
