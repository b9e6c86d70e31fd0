// One test of llama-bench's kind: fill the cache to a depth, prefill, decode; every step timed.
#include <algorithm>
#include <cstdio>
#include <stdexcept>

#include "modes.h"
#include "report.h"

namespace adakv::runner {

namespace {

// The tokens to feed, in turn and around again.
class Feed {
 public:
  explicit Feed(const std::vector<int64_t>& tokens) : tokens_(tokens) {}

  std::vector<int64_t> next(int64_t count) {
    std::vector<int64_t> taken;
    for (; count > 0; --count) taken.push_back(tokens_[at_++ % tokens_.size()]);
    return taken;
  }

 private:
  const std::vector<int64_t>& tokens_;
  size_t at_ = 0;
};

// Steps that follow one another without a gap: the time of each includes choosing a token.
struct Steps {
  int64_t start_ns = 0;
  std::vector<int64_t> ns, tokens;

  int64_t total() const {
    int64_t sum = 0;
    for (int64_t one : ns) sum += one;
    return sum;
  }
};

// Append `count` tokens in chunks of at most `most`; fewer where the context ends.
Steps append(Model& model, Feed& feed, int64_t count, int64_t most) {
  Steps steps;
  volatile int64_t chosen = 0;
  int64_t before = steps.start_ns = now_ns();
  while (count > 0 && model.position() < model.context()) {
    const int64_t size = model.next_chunk(std::min(count, model.context() - model.position()), most);
    const float* logits = model.step(feed.next(size));
    chosen = std::max_element(logits, logits + model.vocabulary()) - logits;
    const int64_t after = now_ns();
    steps.ns.push_back(after - before);
    steps.tokens.push_back(size);
    before = after;
    count -= size;
  }
  (void)chosen;
  return steps;
}

}  // namespace

void run_benchmark(const Options& o) {
  const int64_t start = now_ns();
  Model model(o.model);
  model.check_tokens(o.tokens);
  const int64_t loaded = now_ns();
  const Memory memory_loaded = memory();
  const int64_t chunk = model.prefill_chunk(o.chunk);
  if (o.depth >= model.context()) {
    throw std::runtime_error("--depth " + std::to_string(o.depth) + " fills the context of " +
                             std::to_string(model.context()) + ": choose less, or export with a larger --context");
  }

  Feed warm_feed(o.tokens);
  const Steps cold = append(model, warm_feed, chunk, chunk);
  append(model, warm_feed, 1, 1);
  model.reset();

  Feed feed(o.tokens);
  const Steps fill = append(model, feed, o.depth, chunk);
  const std::vector<int64_t> cores = allowed_cores(), clocks_before = clocks_khz(cores);
  const Steps prefill = append(model, feed, o.pp, chunk);
  const Steps decode = append(model, feed, o.tg, 1);
  const std::vector<int64_t> clocks_after = clocks_khz(cores);
  const bool whole = model.position() == o.depth + o.pp + o.tg;

  JsonObject result;
  result.add("schema", "adakv-run-1").add("runner", runner_json(o));
  result.add("test", JsonObject().add("pp", o.pp).add("tg", o.tg).add("depth", o.depth));
  result.add("load_ns", loaded - start).add("cold_step_ns", cold.total()).add("fill_ns", fill.total());
  result.add("prefill_ns", prefill.ns).add("prefill_tokens", prefill.tokens).add("decode_ns", decode.ns);
  o.pp > 0 ? result.add("first_token_ns", prefill.total()) : result.add_null("first_token_ns");
  result.add("started_ns", JsonObject()
                               .add("load", start)
                               .add("warm_up", cold.start_ns)
                               .add("fill", fill.start_ns)
                               .add("prefill", prefill.start_ns)
                               .add("decode", decode.start_ns));
  result.add("clocks_khz", JsonObject().add("cores", cores).add("before", clocks_before).add("after", clocks_after));
  result.add("memory", memory_json(memory_loaded, memory())).add("cache", cache_json(model));
  result.add("finish_reason", whole ? "done" : "context");
  std::printf("%s\n", result.text().c_str());
}

}  // namespace adakv::runner
