// The one place where an instruction set is chosen.
#pragma once

namespace adakv {

// Kernel sets, slower ones first within an architecture.
enum class Isa {
  kBaseline,    // whatever the compiler may assume: SSE2 on x86-64, NEON on arm64
  kAvx2,        // AVX2, FMA, F16C
  kAvxVnni,     // and the dot products of AVX-VNNI
  kAvx512Vnni,  // AVX-512 F, BW, DQ, VL and VNNI
  kDotprod,     // Armv8.2 dot products
  kI8mm,        // and the int8 matrix products of Armv8.6
};

// "baseline", "avx2", "avxvnni", "avx512vnni", "dotprod", "i8mm".
const char* isa_name(Isa isa);

// True if this CPU runs the set and the environment variable ADAKV_ISA, if it is set, allows it. ADAKV_ISA names the
// best set that may be chosen ("neon" is "baseline") and is read once.
bool cpu_has(Isa isa);

}  // namespace adakv
