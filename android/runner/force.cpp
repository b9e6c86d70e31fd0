// Teacher-forced logits and the cache's bytes, to compare with another implementation.
#include <cstdio>
#include <fstream>
#include <stdexcept>

#include "modes.h"
#include "report.h"

namespace adakv::runner {

namespace {

void write(const std::string& path, const void* data, size_t bytes, std::ios::openmode how) {
  std::ofstream file(path, std::ios::binary | how);
  file.write(static_cast<const char*>(data), std::streamsize(bytes));
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

}  // namespace

void run_force(const Options& o) {
  const int64_t start = now_ns();
  Model model(o.model);
  model.check_tokens(o.tokens);
  model.check_fits(int64_t(o.tokens.size()));
  const int64_t loaded = now_ns();
  const Memory memory_loaded = memory();

  const size_t row = size_t(model.vocabulary()) * sizeof(float);
  const auto forced = o.tokens.end() - o.force;
  const float* logits = model.prefill({o.tokens.begin(), forced}, model.prefill_chunk(o.chunk));
  if (!o.logits.empty()) write(o.logits, logits, row, std::ios::trunc);
  for (auto token = forced; token != o.tokens.end(); ++token) {
    logits = model.step({*token});
    if (!o.logits.empty()) write(o.logits, logits, row, std::ios::app);
  }
  if (!o.states.empty()) {
    make_directory(o.states);
    model.each_state([&](const std::string& name, const void* data, size_t bytes) {
      write(o.states + "/" + name, data, bytes, std::ios::trunc);
    });
  }

  JsonObject result;
  result.add("schema", "adakv-run-1").add("runner", runner_json(o)).add("load_ns", loaded - start);
  result.add("memory", memory_json(memory_loaded, memory())).add("cache", cache_json(model));
  result.add("logits", JsonObject().add("steps", o.force + 1).add("vocabulary", model.vocabulary()));
  std::printf("%s\n", result.text().c_str());
}

}  // namespace adakv::runner
