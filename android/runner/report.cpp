#include "report.h"

#include "cpu.h"

namespace adakv::runner {

namespace {

const char* best_isa() {
  for (Isa isa : {Isa::kI8mm, Isa::kDotprod, Isa::kAvx512Vnni, Isa::kAvxVnni, Isa::kAvx2}) {
    if (cpu_has(isa)) return isa_name(isa);
  }
  return isa_name(Isa::kBaseline);
}

const char* platform() {
#if defined(__ANDROID__)
  return "android";
#elif defined(__linux__)
  return "linux";
#else
  return "other";
#endif
}

JsonObject pages_json(const Memory& m) {
  JsonObject pages;
  m.resident < 0 ? pages.add_null("rss") : pages.add("rss", m.resident);
  m.anonymous < 0 ? pages.add_null("anonymous") : pages.add("anonymous", m.anonymous);
  m.file < 0 ? pages.add_null("file") : pages.add("file", m.file);
  return pages;
}

}  // namespace

JsonObject runner_json(const Options& o) {
  JsonObject runner;
  runner.add("isa", best_isa()).add("threads", thread_count());
  o.cpu_mask.empty() ? runner.add_null("cpu_mask") : runner.add("cpu_mask", o.cpu_mask);
  return runner.add("platform", platform());
}

JsonObject memory_json(const Memory& loaded, const Memory& end) {
  return JsonObject().add("loaded", pages_json(loaded)).add("end", pages_json(end)).add("peak", end.peak);
}

JsonObject cache_json(Model& model) {
  const TierCounts counts = model.counts();
  return JsonObject().add("bytes", counts.bytes).add("tokens_by_tier", counts.tokens).add("position", model.position());
}

}  // namespace adakv::runner
