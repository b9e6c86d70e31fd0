// An answer to a prompt of token ids.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

#include "modes.h"
#include "report.h"

namespace adakv::runner {

namespace {

class Sampler {
 public:
  Sampler(double temperature, int64_t seed) : temperature_(temperature), random_(uint64_t(seed)) {}

  int64_t pick(const float* logits, int64_t n) {
    const float* best = std::max_element(logits, logits + n);
    if (temperature_ == 0) return best - logits;
    std::vector<double> weights(logits, logits + n);
    for (double& w : weights) w = std::exp((w - *best) / temperature_);
    return std::discrete_distribution<int64_t>(weights.begin(), weights.end())(random_);
  }

 private:
  double temperature_;
  std::mt19937_64 random_;
};

double milliseconds(int64_t ns) { return double(ns) / 1e6; }

}  // namespace

void run_generate(const Options& o) {
  const int64_t start = now_ns();
  Model model(o.model);
  model.check_fits(int64_t(o.tokens.size()));
  model.check_tokens(o.tokens);
  const int64_t loaded = now_ns();
  const float* logits = model.prefill(o.tokens, model.prefill_chunk(o.chunk));
  const int64_t prefilled = now_ns();

  Sampler sampler(o.temperature, o.seed);
  std::vector<int64_t> made;
  const char* reason = "length";
  while (true) {
    const int64_t token = sampler.pick(logits, model.vocabulary());
    const std::vector<int64_t>& ends = model.eos_ids();
    if (!o.ignore_eos && std::find(ends.begin(), ends.end(), token) != ends.end()) {
      reason = "eos";
      break;
    }
    made.push_back(token);
    if (!o.json) {
      std::printf(made.size() > 1 ? " %lld" : "%lld", (long long)token);
      std::fflush(stdout);
    }
    if (int64_t(made.size()) == o.max_new_tokens) break;
    if (model.position() == model.context()) {
      reason = "context";
      break;
    }
    logits = model.step({token});
  }
  const double decode_ms = milliseconds(now_ns() - prefilled);
  const int64_t steps = model.position() - int64_t(o.tokens.size());  // the first token comes out of the prefill
  const TierCounts counts = model.counts();
  if (!o.json) std::printf("\n");
  JsonObject result;
  result.add("prompt_tokens", int64_t(o.tokens.size())).add("new_tokens", int64_t(made.size()));
  result.add("finish_reason", reason);
  if (o.json) result.add("token_ids", made);
  result.add("load_ms", milliseconds(loaded - start), 1);
  result.add("prefill_ms_per_token", milliseconds(prefilled - loaded) / double(o.tokens.size()), 3);
  result.add("decode_ms_per_token", steps > 0 ? decode_ms / double(steps) : 0.0, 3);
  result.add("tokens_by_tier", counts.tokens).add("cache_bytes", counts.bytes);
  result.add("peak_resident_bytes", memory().peak);
  std::printf("%s\n", result.text().c_str());
}

}  // namespace adakv::runner
