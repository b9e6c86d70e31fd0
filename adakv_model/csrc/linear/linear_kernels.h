// The kernel sets, one for each linear_<instruction set>.cpp. linear.cpp chooses.
#pragma once

#include "linear/linear.h"

#define ADAKV_LINEAR_KERNELS(isa)            \
  namespace isa {                            \
  extern const LinearKernels kLinearKernels; \
  }

namespace adakv {

ADAKV_LINEAR_KERNELS(baseline)
ADAKV_LINEAR_KERNELS(avx2)
ADAKV_LINEAR_KERNELS(avxvnni)
ADAKV_LINEAR_KERNELS(avx512vnni)
ADAKV_LINEAR_KERNELS(neon)
ADAKV_LINEAR_KERNELS(dotprod)
ADAKV_LINEAR_KERNELS(i8mm)

}  // namespace adakv
