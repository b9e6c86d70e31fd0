#include "cpu.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace adakv {

namespace {

constexpr Isa kAll[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512Vnni, Isa::kDotprod, Isa::kI8mm};

#if defined(__x86_64__)

// Compilers learned the name of this feature later than the others'.
bool has_avxvnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1) != 0;
}

bool runs(Isa isa) {
  if (isa == Isa::kBaseline) return true;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;  // F16C is older than AVX2
  switch (isa) {
    case Isa::kAvx2: return true;
    case Isa::kAvxVnni: return has_avxvnni();
    case Isa::kAvx512Vnni:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
    default: return false;
  }
}

#elif defined(__aarch64__) && defined(__linux__)

bool runs(Isa isa) {
  constexpr unsigned long kAsimdDp = 1ul << 20;  // HWCAP_ASIMDDP
  constexpr unsigned long kInt8Mm = 1ul << 13;   // HWCAP2_I8MM
  const bool dotprod = (getauxval(AT_HWCAP) & kAsimdDp) != 0;
  switch (isa) {
    case Isa::kBaseline: return true;
    case Isa::kDotprod: return dotprod;
    case Isa::kI8mm: return dotprod && (getauxval(AT_HWCAP2) & kInt8Mm) != 0;
    default: return false;
  }
}

#else

bool runs(Isa isa) { return isa == Isa::kBaseline; }

#endif

// The best set that ADAKV_ISA allows; every set if it is not set or names none.
Isa limit() {
  const char* name = std::getenv("ADAKV_ISA");
  if (name == nullptr || *name == 0) return Isa::kI8mm;
  if (std::strcmp(name, "neon") == 0) return Isa::kBaseline;
  for (Isa isa : kAll) {
    if (std::strcmp(name, isa_name(isa)) == 0) return isa;
  }
  std::fprintf(stderr, "adakv: ADAKV_ISA=%s names no instruction set and is ignored\n", name);
  return Isa::kI8mm;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kBaseline: return "baseline";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvxVnni: return "avxvnni";
    case Isa::kAvx512Vnni: return "avx512vnni";
    case Isa::kDotprod: return "dotprod";
    case Isa::kI8mm: return "i8mm";
  }
  return "";
}

bool cpu_has(Isa isa) {
  static const Isa best = limit();
  return isa <= best && runs(isa);
}

}  // namespace adakv
