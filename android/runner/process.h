// What the operating system knows about this process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace adakv::runner {

// Bytes; -1 where the system does not say.
struct Memory {
  int64_t resident = -1, anonymous = -1, file = -1;  // of pages now: all, private, of mapped files
  int64_t peak = -1;                                 // largest `resident` so far
};

Memory memory();

// Cores that this process may run on, by number; empty where the system does not say.
std::vector<int64_t> allowed_cores();

// Their clocks at this moment in kHz, in the same order; empty where the system does not say.
std::vector<int64_t> clocks_khz(const std::vector<int64_t>& cores);

// Nanoseconds of a monotonic clock since the first call.
int64_t now_ns();

// A folder, unless it is there already. Throws std::runtime_error.
void make_directory(const std::string& path);

// Run on the cores of a hexadecimal mask from here on, threads made later included. Throws std::runtime_error.
void set_cpu_mask(const std::string& hex);

}  // namespace adakv::runner
