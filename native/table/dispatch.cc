// Chooses the kernels for this processor, once.
#include "table/view.h"

namespace satrap {

extern const Kernels kernels_base;
#if defined(SATRAP_X86_LEVELS)
extern const Kernels kernels_v3;
extern const Kernels kernels_v4;
#endif

size_t kernel_levels(const Kernels* const** levels) {
  static const Kernels* found[3];
  static const size_t count = [] {
    size_t n = 0;
    found[n++] = &kernels_base;
#if defined(SATRAP_X86_LEVELS)
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512cd");
    if (v3) found[n++] = &kernels_v3;
    if (v4) found[n++] = &kernels_v4;
#endif
    return n;
  }();
  *levels = found;
  return count;
}

const Kernels& kernels() {
  static const Kernels& best = [&]() -> const Kernels& {
    const Kernels* const* levels;
    const size_t n = kernel_levels(&levels);
    return *levels[n - 1];
  }();
  return best;
}

}  // namespace satrap
