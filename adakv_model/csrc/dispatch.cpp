#include <cstring>

#include "rows.h"

namespace adakv {

namespace {

bool cpu_has_avx2() {
#if defined(ADAKV_HAVE_AVX2)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

}  // namespace

const RowKernels* find_row_kernels(const char* name) {
  if (std::strcmp(name, "baseline") == 0) return &baseline::kKernels;
#if defined(ADAKV_HAVE_AVX2)
  if (std::strcmp(name, "avx2") == 0 && cpu_has_avx2()) return &avx2::kKernels;
#endif
  return nullptr;
}

const RowKernels& row_kernels() {
  static const RowKernels& best = *find_row_kernels(cpu_has_avx2() ? "avx2" : "baseline");
  return best;
}

}  // namespace adakv
