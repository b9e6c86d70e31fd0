// Products with weight matrices on the dot products of Armv8.2.
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "fast_exp.h"
#include "linear/int4.h"
#include "linear/linear_kernels.h"
#include "linear/linear_tiles.h"
#include "linear/table.h"

namespace adakv {
namespace dotprod {
namespace {

#include "linear/linear_inputs.h"

#include "linear/linear_sdot.h"

#include "linear/linear_neon.h"

}  // namespace

const LinearKernels kLinearKernels = {"dotprod", kNeonTile, false, normalize, swiglu, quantize, table_neon, int4_neon};

}  // namespace dotprod
}  // namespace adakv
