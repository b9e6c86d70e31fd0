#include <cstring>

#include "cache/attend_kernels.h"
#include "cpu.h"

namespace adakv {

extern const AttendKernels kAttendScalar, kAttendAvx2, kAttendAvxVnni, kAttendAvx512Vnni;
extern const AttendKernels kAttendNeon, kAttendNeonDot, kAttendNeonI8mm;

namespace {

struct Choice {
  const AttendKernels* kernels;
  Isa isa;
};

// The best last.
constexpr Choice kChoices[] = {
    {&kAttendScalar, Isa::kBaseline},
#if defined(__x86_64__)
    {&kAttendAvx2, Isa::kAvx2},
    {&kAttendAvxVnni, Isa::kAvxVnni},
    {&kAttendAvx512Vnni, Isa::kAvx512Vnni},
#elif defined(__aarch64__)
    {&kAttendNeon, Isa::kBaseline},
    {&kAttendNeonDot, Isa::kDotprod},
    {&kAttendNeonI8mm, Isa::kI8mm},
#endif
};

}  // namespace

const AttendKernels* find_attend_kernels(const char* name) {
  for (const Choice& choice : kChoices) {
    if (std::strcmp(name, choice.kernels->name) == 0) return cpu_has(choice.isa) ? choice.kernels : nullptr;
  }
  return nullptr;
}

const AttendKernels& attend_kernels() {
  static const AttendKernels* best = [] {
    const AttendKernels* usable = nullptr;
    for (const Choice& choice : kChoices) {
      if (cpu_has(choice.isa)) usable = choice.kernels;
    }
    return usable;
  }();
  return *best;
}

}  // namespace adakv
