// adakv_runner: token ids in, token ids out. Text becomes tokens on the host (adakv_model/runtime/text.py).
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "model.h"

namespace adakv::runner {
namespace {

constexpr const char* kUsage =
    "usage: adakv_runner --model model.pte (--tokens 1,2,3 | --tokens-file FILE) [options]\n"
    "  --tokens LIST        prompt as token ids, separated by commas or spaces\n"
    "  --tokens-file FILE   the same from a file\n"
    "  --max-new-tokens N   stop after N tokens (32)\n"
    "  --temperature T      0 takes the likeliest token (0)\n"
    "  --seed N             of the sampler, with a temperature above 0 (0)\n"
    "  --chunk N            tokens per prefill step, at most what the program takes (the most)\n"
    "  --threads N          of the runtime (one a core)\n"
    "  --ignore-eos         go on after an end token, to measure\n"
    "  --json               print one JSON object instead of ids followed by one\n";

struct Options {
  std::string model;
  std::vector<int64_t> prompt;
  int64_t max_new_tokens = 32, chunk = 0, threads = 0, seed = 0;
  double temperature = 0;
  bool json = false, ignore_eos = false;
};

int64_t parse_integer(const std::string& flag, const std::string& text, int64_t least) {
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < least) {
    throw std::runtime_error(flag + " takes an integer of at least " + std::to_string(least) + ", not '" + text + "'");
  }
  return value;
}

double parse_temperature(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value >= 0) || std::isinf(value)) {
    throw std::runtime_error("--temperature takes a number of at least 0, not '" + text + "'");
  }
  return value;
}

std::vector<int64_t> parse_tokens(const std::string& flag, std::string text) {
  std::replace(text.begin(), text.end(), ',', ' ');
  std::istringstream words(text);
  std::vector<int64_t> tokens;
  for (std::string word; words >> word;) tokens.push_back(parse_integer(flag, word, 0));
  return tokens;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) throw std::runtime_error("cannot read " + path);
  return text.str();
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--json") {
      o.json = true;
      continue;
    }
    if (flag == "--ignore-eos") {
      o.ignore_eos = true;
      continue;
    }
    if (flag.rfind("--", 0) != 0 || i + 1 >= argc) {
      throw std::runtime_error("cannot use '" + flag + "': see adakv_runner --help");
    }
    const std::string value = argv[++i];
    if (flag == "--model") {
      o.model = value;
    } else if (flag == "--tokens") {
      o.prompt = parse_tokens(flag, value);
    } else if (flag == "--tokens-file") {
      o.prompt = parse_tokens(flag, read_file(value));
    } else if (flag == "--max-new-tokens") {
      o.max_new_tokens = parse_integer(flag, value, 1);
    } else if (flag == "--temperature") {
      o.temperature = parse_temperature(value);
    } else if (flag == "--seed") {
      o.seed = parse_integer(flag, value, 0);
    } else if (flag == "--chunk") {
      o.chunk = parse_integer(flag, value, 1);
    } else if (flag == "--threads") {
      o.threads = parse_integer(flag, value, 1);
    } else {
      throw std::runtime_error("unknown option " + flag + ": see adakv_runner --help");
    }
  }
  if (o.model.empty()) throw std::runtime_error("--model is missing");
  if (o.prompt.empty()) throw std::runtime_error("the prompt is empty: pass --tokens or --tokens-file");
  return o;
}

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

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t(usage.ru_maxrss) * 1024;
}

std::string json_list(const std::vector<int64_t>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

void check_prompt(const Options& o, const Model& model) {
  if (int64_t(o.prompt.size()) > model.context()) {
    throw std::runtime_error("the prompt has " + std::to_string(o.prompt.size()) + " tokens and the program holds " +
                             std::to_string(model.context()) + ": shorten it, or export with a larger --context");
  }
  for (int64_t token : o.prompt) {
    if (token >= model.vocabulary()) {
      throw std::runtime_error("token id " + std::to_string(token) + " is outside the vocabulary of " +
                               std::to_string(model.vocabulary()));
    }
  }
  if (o.chunk > model.chunk()) {
    throw std::runtime_error("--chunk is at most " + std::to_string(model.chunk()) + " for this program");
  }
}

const float* prefill(const Options& o, Model& model) {
  const int64_t most = o.chunk > 0 ? o.chunk : model.chunk(), count = int64_t(o.prompt.size());
  const float* logits = nullptr;
  for (int64_t at = 0; at < count;) {
    const auto begin = o.prompt.begin() + at;
    const int64_t size = model.next_chunk(count - at, most);
    logits = model.step({begin, begin + size});
    at += size;
  }
  return logits;
}

void run(const Options& o) {
  if (o.threads > 0) set_threads(int(o.threads));
  auto start = std::chrono::steady_clock::now();
  Model model(o.model);
  check_prompt(o, model);
  const double load_ms = milliseconds_since(start);

  start = std::chrono::steady_clock::now();
  const float* logits = prefill(o, model);
  const double prefill_ms = milliseconds_since(start);

  start = std::chrono::steady_clock::now();
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
  const double decode_ms = milliseconds_since(start);
  const int64_t steps = model.position() - int64_t(o.prompt.size());  // the first token comes out of the prefill
  const TierCounts counts = model.counts();
  if (!o.json) std::printf("\n");
  std::printf("{\"prompt_tokens\": %zu, \"new_tokens\": %zu, \"finish_reason\": \"%s\", ", o.prompt.size(), made.size(),
              reason);
  if (o.json) std::printf("\"token_ids\": %s, ", json_list(made).c_str());
  std::printf("\"load_ms\": %.1f, \"prefill_ms_per_token\": %.3f, \"decode_ms_per_token\": %.3f, ", load_ms,
              prefill_ms / double(o.prompt.size()), steps > 0 ? decode_ms / double(steps) : 0.0);
  std::printf("\"tokens_by_tier\": %s, \"cache_bytes\": %lld, \"peak_resident_bytes\": %lld}\n",
              json_list(counts.tokens).c_str(), (long long)counts.bytes, (long long)peak_resident_bytes());
}

}  // namespace
}  // namespace adakv::runner

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--help") == 0 || std::strcmp(argv[i], "-h") == 0) {
      std::fputs(adakv::runner::kUsage, stdout);
      return 0;
    }
  }
  try {
    adakv::runner::run(adakv::runner::parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
  return 0;
}
