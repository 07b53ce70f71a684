// Rows to bytes and back. Compiled once for every instruction-set level, as table/kernels.cc is, and like it
// of internal linkage only.
#include <bit>
#include <cstring>

#include "base/half.h"
#include "base/lanes.h"
#include "wire/rows.h"

namespace satrap {
namespace {

float largest(const float* values, size_t n) {
  Words most = {};
  size_t i = 0;
  for (; i < whole(n); i += kLanes) {
    const Words a = magnitudes(load(values + i));
    most = larger(most, a < kInfinity ? a : Words{});
  }
  int32_t found = largest_of(most);
  for (; i < n; ++i) {
    const int32_t a = magnitude(values[i]);
    if (a < kInfinity && a > found) found = a;
  }
  return std::bit_cast<float>(found);
}

// ---- one row

// Infinities and NaNs stay what they are. `most`: the largest finite magnitude so far.
inline void encode_halves(const float* in, char* out, size_t n, float inverse, Words& most) {
  size_t j = 0;
  for (; j < whole(n); j += kLanes) {
    const Floats x = load(in + j);
    const Words a = magnitudes(x);
    most = larger(most, a < kInfinity ? a : Words{});
    const Floats scaled = x * inverse;
    encode_half(reinterpret_cast<const float*>(&scaled), out + 2 * j, kLanes);
  }
  for (; j < n; ++j) {
    const int32_t a = magnitude(in[j]);
    if (a < kInfinity && a > most[0]) most[0] = a;
    const float scaled = in[j] * inverse;
    encode_half(&scaled, out + 2 * j, 1);
  }
}

inline void decode_halves(const char* in, float* out, size_t n, float scale) {
  size_t j = 0;
  for (; j < whole(n); j += kLanes) {
    Floats x;
    decode_half(in + 2 * j, reinterpret_cast<float*>(&x), kLanes);
    store(out + j, x * scale);
  }
  for (; j < n; ++j) {
    decode_half(in + 2 * j, out + j, 1);
    out[j] *= scale;
  }
}

// Below this a row's scale would not be a normal number: it travels as zeros.
constexpr float kSmallest = 0x1p-118f;
// x + kRound has its unit in the last mantissa bit: the sum rounds x to the nearest integer, ties to even,
// and its bits are kRoundBits plus that integer.
constexpr float kRound = 0x1.8p23f;
constexpr int32_t kRoundBits = std::bit_cast<int32_t>(kRound);

// Returns the row's scale.
inline float encode_bytes(const float* in, char* out, size_t n) {
  Words most = {};
  size_t j = 0;
  for (; j < whole(n); j += kLanes) most = larger(most, magnitudes(load(in + j)));
  int32_t found = largest_of(most);
  for (; j < n; ++j) found = magnitude(in[j]) > found ? magnitude(in[j]) : found;
  const float m = std::bit_cast<float>(found);
  if (found >= kInfinity || m < kSmallest) {
    std::memset(out, 0, n);
    return found >= kInfinity ? std::bit_cast<float>(0x7FC00000u) : 0.0f;
  }
  const float inverse = 127.0f / m;
  for (j = 0; j < whole(n); j += kLanes)
    store_bytes(out + j, reinterpret_cast<Words>(load(in + j) * inverse + kRound) - kRoundBits);
  for (; j < n; ++j)
    out[j] = static_cast<char>(std::bit_cast<int32_t>(in[j] * inverse + kRound) - kRoundBits);
  return m / 127.0f;
}

inline void decode_bytes(const char* in, float* out, size_t n, float scale) {
  size_t j = 0;
  for (; j < whole(n); j += kLanes) store(out + j, load_bytes(in + j) * scale);
  for (; j < n; ++j) out[j] = static_cast<float>(static_cast<int8_t>(in[j])) * scale;
}

// ---- all rows of a section; kDim is the dim where it is one of the usual ones, else 0

template <uint32_t kDim>
float encode_rows(WireFormat format, const float* values, const uint32_t* order, size_t rows,
                  uint32_t any_dim, float scale, char* out) {
  const uint32_t dim = kDim ? kDim : any_dim;
  auto row = [&](size_t i) { return values + (order == nullptr ? i : order[i]) * size_t{dim}; };
  const size_t end = section_bytes(format, rows, dim);
  size_t written = 0;
  Words most = {};
  switch (format) {
    case WireFormat::kFp32:
      if (order == nullptr) {
        if (rows != 0) std::memcpy(out, values, 4 * rows * dim);
      } else {
        for (size_t i = 0; i < rows; ++i) std::memcpy(out + 4 * i * dim, row(i), 4 * size_t{dim});
      }
      written = 4 * rows * dim;
      break;
    case WireFormat::kFp16: {
      const float inverse = 1.0f / scale;
      if (order == nullptr)
        encode_halves(values, out, rows * dim, inverse, most);
      else
        for (size_t i = 0; i < rows; ++i) encode_halves(row(i), out + 2 * i * dim, dim, inverse, most);
      written = 2 * rows * dim;
      break;
    }
    case WireFormat::kInt8: {
      char* codes = out + 4 * rows;
      for (size_t i = 0; i < rows; ++i) {
        const float s = encode_bytes(row(i), codes + i * dim, dim);
        std::memcpy(out + 4 * i, &s, 4);
      }
      written = rows * (4 + size_t{dim});
      break;
    }
  }
  for (; written < end; ++written) out[written] = 0;
  return std::bit_cast<float>(largest_of(most));
}

template <uint32_t kDim>
void decode_rows(WireFormat format, const char* in, size_t rows, uint32_t any_dim, float scale,
                 const uint32_t* positions, float* out) {
  const uint32_t dim = kDim ? kDim : any_dim;
  auto row = [&](size_t i) { return out + (positions == nullptr ? i : positions[i]) * size_t{dim}; };
  switch (format) {
    case WireFormat::kFp32:
      if (positions == nullptr) {
        if (rows != 0) std::memcpy(out, in, 4 * rows * dim);
      } else {
        for (size_t i = 0; i < rows; ++i) std::memcpy(row(i), in + 4 * i * dim, 4 * size_t{dim});
      }
      break;
    case WireFormat::kFp16:
      if (positions == nullptr)
        decode_halves(in, out, rows * dim, scale);
      else
        for (size_t i = 0; i < rows; ++i) decode_halves(in + 2 * i * dim, row(i), dim, scale);
      break;
    case WireFormat::kInt8: {
      const char* codes = in + 4 * rows;
      for (size_t i = 0; i < rows; ++i) {
        float s;
        std::memcpy(&s, in + 4 * i, 4);
        decode_bytes(codes + i * dim, row(i), dim, s);
      }
      break;
    }
  }
}

float encode(WireFormat format, const float* values, const uint32_t* order, size_t rows, uint32_t dim,
             float scale, char* out) {
  switch (dim) {
    case 8:
      return encode_rows<8>(format, values, order, rows, dim, scale, out);
    case 16:
      return encode_rows<16>(format, values, order, rows, dim, scale, out);
    case 32:
      return encode_rows<32>(format, values, order, rows, dim, scale, out);
    case 64:
      return encode_rows<64>(format, values, order, rows, dim, scale, out);
    case 128:
      return encode_rows<128>(format, values, order, rows, dim, scale, out);
    default:
      return encode_rows<0>(format, values, order, rows, dim, scale, out);
  }
}

void decode(WireFormat format, const char* in, size_t rows, uint32_t dim, float scale,
            const uint32_t* positions, float* out) {
  switch (dim) {
    case 8:
      return decode_rows<8>(format, in, rows, dim, scale, positions, out);
    case 16:
      return decode_rows<16>(format, in, rows, dim, scale, positions, out);
    case 32:
      return decode_rows<32>(format, in, rows, dim, scale, positions, out);
    case 64:
      return decode_rows<64>(format, in, rows, dim, scale, positions, out);
    case 128:
      return decode_rows<128>(format, in, rows, dim, scale, positions, out);
    default:
      return decode_rows<0>(format, in, rows, dim, scale, positions, out);
  }
}

}  // namespace

#define SATRAP_CONCAT2(a, b) a##b
#define SATRAP_CONCAT(a, b) SATRAP_CONCAT2(a, b)
#define SATRAP_STRING2(a) #a
#define SATRAP_STRING(a) SATRAP_STRING2(a)

extern const WireKernels SATRAP_CONCAT(wire_kernels_, SATRAP_LEVEL);
const WireKernels SATRAP_CONCAT(wire_kernels_, SATRAP_LEVEL) = {SATRAP_STRING(SATRAP_LEVEL), largest, encode,
                                                                decode};

}  // namespace satrap
