#include "table/convert.h"

#include <cstring>

#include "table/moments.h"
#include "table/view.h"

namespace satrap {

void convert_row(const TableSpec& from, const TableSpec& to, const uint8_t* values, const float* state,
                 uint8_t* new_values, float* new_state) {
  const auto* in = reinterpret_cast<const char*>(values);
  auto* out = reinterpret_cast<char*>(new_values);
  if (from.format == to.format) {
    std::memcpy(out, in, stored_bytes(from.format, from.dim));
  } else {
    float full[kMaxDim];
    kernels().decode(from.format, in, full, from.dim);
    kernels().encode(to.format, full, out, to.dim);
  }
  const uint32_t words = state_floats(from.optimizer, from.dim);
  if (from.optimizer.state == to.optimizer.state)
    std::memcpy(new_state, state, 4 * size_t{words});
  else if (to.optimizer.state == StateFormat::kInt8)
    pack_moments(state, new_state, to.dim);
  else
    unpack_moments(state, new_state, to.dim);
  if (!keeps_version(to)) return;
  float* version = new_state + state_floats(to.optimizer, to.dim);
  if (keeps_version(from))
    std::memcpy(version, state + words, 4);
  else
    std::memset(version, 0, 4);
}

}  // namespace satrap
