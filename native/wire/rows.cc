#include "wire/rows.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/hash.h"
#include "table/view.h"

namespace satrap {

extern const WireKernels wire_kernels_base;
#if defined(SATRAP_X86_LEVELS)
extern const WireKernels wire_kernels_v3;
extern const WireKernels wire_kernels_v4;
#endif

size_t wire_kernel_levels(const WireKernels* const** levels) {
#if defined(SATRAP_X86_LEVELS)
  static const WireKernels* const all[] = {&wire_kernels_base, &wire_kernels_v3, &wire_kernels_v4};
#else
  static const WireKernels* const all[] = {&wire_kernels_base};
#endif
  *levels = all;
  const Kernels* const* runs;
  return kernel_levels(&runs);
}

const WireKernels& wire_kernels() {
  static const WireKernels& best = [&]() -> const WireKernels& {
    const WireKernels* const* levels;
    const size_t n = wire_kernel_levels(&levels);
    return *levels[n - 1];
  }();
  return best;
}

float half_scale(float largest, float least) {
  if (largest == 0.0f) return least;
  int exponent = 0;
  std::frexp(largest, &exponent);  // largest < 2^exponent
  // Not below the smallest normal number: what is that small needs no more scale to be exact.
  return std::max(least, std::ldexp(1.0f, std::max(exponent - 15, -126)));
}

void route(const uint64_t* ids, size_t n, int partition_bits, const uint16_t* owners, size_t servers,
           uint32_t* order, int64_t* counts) {
  std::fill(counts, counts + servers, 0);
  const std::unique_ptr<uint16_t[]> of(new uint16_t[n]);
  for (size_t i = 0; i < n; ++i) {
    of[i] = owners[partition_bits == 0 ? 0 : mix(ids[i]) >> (64 - partition_bits)];
    ++counts[of[i]];
  }
  const std::unique_ptr<uint32_t[]> next(new uint32_t[servers]);
  uint32_t at = 0;
  for (size_t s = 0; s < servers; ++s) {
    next[s] = at;
    at += static_cast<uint32_t>(counts[s]);
  }
  for (size_t i = 0; i < n; ++i) order[next[of[i]]++] = static_cast<uint32_t>(i);
}

}  // namespace satrap
