#include <cstring>

#include "cpu.h"
#include "rows.h"

namespace adakv {

const RowKernels* find_row_kernels(const char* name) {
  if (std::strcmp(name, "baseline") == 0) return &baseline::kKernels;
#if defined(ADAKV_HAVE_AVX2)
  if (std::strcmp(name, "avx2") == 0 && cpu_has(Isa::kAvx2)) return &avx2::kKernels;
#endif
  return nullptr;
}

const RowKernels& row_kernels() {
  static const RowKernels* avx2 = find_row_kernels("avx2");
  return avx2 != nullptr ? *avx2 : baseline::kKernels;
}

}  // namespace adakv
