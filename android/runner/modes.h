// What the runner does with a model; each prints its result on standard output and throws std::runtime_error.
#pragma once

#include "options.h"

namespace adakv::runner {

void run_generate(const Options& o);   // generate.cpp: an answer
void run_benchmark(const Options& o);  // benchmark.cpp: the time of one test
void run_force(const Options& o);      // force.cpp: logits and states over given tokens

}  // namespace adakv::runner
