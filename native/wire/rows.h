// Rows as bytes of a message (docs/formats/wire.md), and ids by the server that owns them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace satrap {

enum class WireFormat : uint8_t { kFp32, kFp16, kInt8 };

// Bytes of `rows` rows in a message, padding to a multiple of 4 included.
constexpr size_t section_bytes(WireFormat format, size_t rows, size_t dim) {
  if (format == WireFormat::kFp32) return 4 * rows * dim;
  return ((format == WireFormat::kFp16 ? 2 * rows * dim : rows * (4 + dim)) + 3) & ~size_t{3};
}

// Like `Kernels`: compiled once for every instruction-set level, all of them with the same bits. None of them
// checks an index or a length: callers do. Buffers of messages may lie at any address.
struct WireKernels {
  const char* name;
  // The largest magnitude among finite values; 0 where there is none.
  float (*largest)(const float* values, size_t n);
  // Row i of the message is row order[i] of `values` [*, D], or row i where `order` is null. kFp16 divides by
  // `scale`, a power of two; the other formats take none. Returns, for kFp16, the largest magnitude among
  // finite values: from 65520 times `scale` on, `out` holds nothing of use.
  float (*encode)(WireFormat, const float* values, const uint32_t* order, size_t rows, uint32_t dim,
                  float scale, char* out);
  // The inverse: row i of the message becomes row positions[i] of `out` [*, D], or row i.
  void (*decode)(WireFormat, const char* in, size_t rows, uint32_t dim, float scale,
                 const uint32_t* positions, float* out);
};
const WireKernels& wire_kernels();
// As `kernel_levels`.
size_t wire_kernel_levels(const WireKernels* const** levels);

// The power of two for values of this largest magnitude: at least `least`, and no smaller than is needed for
// the magnitude to lie below 2^15, so that rounding up does not reach infinity.
float half_scale(float largest, float least);

// Groups ids by server. `owners` [2^partition_bits] is the server of each partition, below `servers`. Writes
// `order` [n], the positions of the ids of server 0, then those of server 1, …, each ascending, and `counts`
// [servers].
void route(const uint64_t* ids, size_t n, int partition_bits, const uint16_t* owners, size_t servers,
           uint32_t* order, int64_t* counts);

// out[i] = in[order[i]], and out[positions[i]] = in[i].
template <typename T>
void gather(const T* in, const uint32_t* order, size_t n, T* out) {
  for (size_t i = 0; i < n; ++i) out[i] = in[order[i]];
}
template <typename T>
void scatter(const T* in, const uint32_t* positions, size_t n, T* out) {
  for (size_t i = 0; i < n; ++i) out[positions[i]] = in[i];
}

}  // namespace satrap
