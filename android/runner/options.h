// The command line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace adakv::runner {

enum class Mode {
  kGenerate,   // answer a prompt
  kBenchmark,  // --bench: time one test
  kForce,      // --force K: logits and states over given tokens
};

struct Options {
  Mode mode = Mode::kGenerate;
  std::string model;
  std::vector<int64_t> tokens;
  int64_t chunk = 0, threads = 0;  // 0: the most the program takes; one a core
  std::string cpu_mask;            // hexadecimal, as taskset's; empty: all cores

  int64_t max_new_tokens = 32, seed = 0;
  double temperature = 0;
  bool json = false, ignore_eos = false;

  int64_t pp = 0, tg = 0, depth = 0;

  int64_t force = 0;
  std::string logits, states;
};

extern const char* const kUsage;

// Throws std::runtime_error, one line, for anything it does not understand.
Options parse(int argc, char** argv);

}  // namespace adakv::runner
