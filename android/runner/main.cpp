// adakv_runner: token ids in, token ids, times or logits out. Text becomes tokens on the host (adakv_model).
#include <cstdio>
#include <cstring>
#include <exception>

#include "model.h"
#include "modes.h"
#include "process.h"

namespace {

void run(const adakv::runner::Options& options) {
  using adakv::runner::Mode;
  if (!options.cpu_mask.empty()) adakv::runner::set_cpu_mask(options.cpu_mask);
  if (options.threads > 0) adakv::runner::set_threads(int(options.threads));
  switch (options.mode) {
    case Mode::kGenerate: return adakv::runner::run_generate(options);
    case Mode::kBenchmark: return adakv::runner::run_benchmark(options);
    case Mode::kForce: return adakv::runner::run_force(options);
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--help") == 0 || std::strcmp(argv[i], "-h") == 0) {
      std::fputs(adakv::runner::kUsage, stdout);
      return 0;
    }
  }
  try {
    run(adakv::runner::parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
  return 0;
}
