// Rows to bytes and back. Compiled once for every instruction-set level, as table/kernels.cc is, and like it
// of internal linkage only.
#include <bit>
#include <cstring>

#include "base/half.h"
#include "wire/rows.h"

namespace satrap {
namespace {

constexpr uint32_t kInfinity = 0x7F800000u;

inline uint32_t magnitude_bits(float f) { return std::bit_cast<uint32_t>(f) & 0x7FFFFFFFu; }

// Magnitudes compare as their bits do, so this is a reduction over integers, which may be in any order.
float largest(const float* values, size_t n) {
  uint32_t most = 0;
  for (size_t i = 0; i < n; ++i) {
    const uint32_t a = magnitude_bits(values[i]);
    const uint32_t finite = a < kInfinity ? a : 0;
    most = finite > most ? finite : most;
  }
  return std::bit_cast<float>(most);
}

// ---- one row

// 65520 is the smallest number that rounds to infinity. Infinities and NaNs stay what they are.
inline bool encode_row_half(const float* in, char* out, uint32_t dim, float inverse, uint32_t too_large) {
  uint32_t bad = 0;
  for (uint32_t j = 0; j < dim; ++j) {
    const uint32_t a = magnitude_bits(in[j]);
    bad |= static_cast<uint32_t>(a >= too_large) & static_cast<uint32_t>(a < kInfinity);
  }
  constexpr uint32_t kPiece = 64;
  float scaled[kPiece];
  for (uint32_t j = 0; j < dim; j += kPiece) {
    const uint32_t n = dim - j < kPiece ? dim - j : kPiece;
    for (uint32_t k = 0; k < n; ++k) scaled[k] = in[j + k] * inverse;
    encode_half(scaled, out + 2 * size_t{j}, n);
  }
  return bad == 0;
}

inline void decode_row_half(const char* in, float* out, uint32_t dim, float scale) {
  decode_half(in, out, dim);
  for (uint32_t j = 0; j < dim; ++j) out[j] *= scale;
}

// Below this a row's scale would not be a normal number: it travels as zeros.
constexpr float kSmallest = 0x1p-118f;
// x + kRound has its unit in the last mantissa bit: the sum rounds x to the nearest integer, ties to even,
// and the low byte of its bits is that integer as an int8.
constexpr float kRound = 0x1.8p23f;

inline float encode_row_int8(const float* in, char* out, uint32_t dim) {
  uint32_t most = 0;
  for (uint32_t j = 0; j < dim; ++j) {
    const uint32_t a = magnitude_bits(in[j]);
    most = a > most ? a : most;
  }
  const float m = std::bit_cast<float>(most);
  if (most >= kInfinity || m < kSmallest) {
    std::memset(out, 0, dim);
    return most >= kInfinity ? std::bit_cast<float>(0x7FC00000u) : 0.0f;
  }
  const float inverse = 127.0f / m;
  for (uint32_t j = 0; j < dim; ++j)
    out[j] = static_cast<char>(std::bit_cast<uint32_t>(in[j] * inverse + kRound));
  return m / 127.0f;
}

inline void decode_row_int8(const char* in, float* out, uint32_t dim, float scale) {
  for (uint32_t j = 0; j < dim; ++j) out[j] = static_cast<float>(static_cast<int8_t>(in[j])) * scale;
}

// ---- all rows of a section; kDim is the dim where it is one of the usual ones, else 0

template <uint32_t kDim>
bool encode_rows(WireFormat format, const float* values, const uint32_t* order, size_t rows, uint32_t any_dim,
                 float scale, char* out) {
  const uint32_t dim = kDim ? kDim : any_dim;
  auto row = [&](size_t i) { return values + (order == nullptr ? i : order[i]) * size_t{dim}; };
  const size_t end = section_bytes(format, rows, dim);
  size_t written = 0;
  bool fits = true;
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
      const uint32_t too_large = magnitude_bits(65520.0f * scale);
      for (size_t i = 0; i < rows; ++i)
        fits &= encode_row_half(row(i), out + 2 * i * dim, dim, inverse, too_large);
      written = 2 * rows * dim;
      break;
    }
    case WireFormat::kInt8: {
      char* codes = out + 4 * rows;
      for (size_t i = 0; i < rows; ++i) {
        const float s = encode_row_int8(row(i), codes + i * dim, dim);
        std::memcpy(out + 4 * i, &s, 4);
      }
      written = rows * (4 + size_t{dim});
      break;
    }
  }
  for (; written < end; ++written) out[written] = 0;
  return fits;
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
      for (size_t i = 0; i < rows; ++i) decode_row_half(in + 2 * i * dim, row(i), dim, scale);
      break;
    case WireFormat::kInt8: {
      const char* codes = in + 4 * rows;
      for (size_t i = 0; i < rows; ++i) {
        float s;
        std::memcpy(&s, in + 4 * i, 4);
        decode_row_int8(codes + i * dim, row(i), dim, s);
      }
      break;
    }
  }
}

bool encode(WireFormat format, const float* values, const uint32_t* order, size_t rows, uint32_t dim,
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
