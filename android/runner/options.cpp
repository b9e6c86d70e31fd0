#include "options.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <thread>

namespace adakv::runner {

const char* const kUsage =
    "usage: adakv_runner (--model model.pte | --artifact DIR) (--tokens 1,2,3 | --tokens-file FILE) [options]\n"
    "  --tokens LIST        token ids, separated by commas or spaces\n"
    "  --tokens-file FILE   the same from a file\n"
    "  --chunk N            tokens per prefill step, at most what the program takes (the most)\n"
    "  --threads N          of the runtime (one a core)\n"
    "  --cpu-mask HEX       cores to run on, as taskset's (all)\n"
    "answer the tokens:\n"
    "  --max-new-tokens N   stop after N tokens (32)\n"
    "  --temperature T      0 takes the likeliest token (0)\n"
    "  --seed N             of the sampler, with a temperature above 0 (0)\n"
    "  --ignore-eos         go on after an end token, to measure\n"
    "  --json               print one JSON object instead of ids followed by one\n"
    "measure (docs/bench-schema.md):\n"
    "  --bench              time one test over the tokens, repeated where they are too few\n"
    "  --depth N            tokens in the cache before the test (0)\n"
    "  --pp N               tokens to prefill (0)\n"
    "  --tg N               tokens to decode one by one (0)\n"
    "compare:\n"
    "  --force K            prefill all but the last K tokens, then feed those one by one\n"
    "  --logits FILE        float32 [K + 1, vocabulary]: after the prefill and after each of them\n"
    "  --states DIR         every buffer of the cache at the end, a file each\n";

namespace {

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

// Flags without a value; false for others.
bool parse_switch(const std::string& flag, Options& o) {
  if (flag == "--json") {
    o.json = true;
  } else if (flag == "--ignore-eos") {
    o.ignore_eos = true;
  } else if (flag == "--bench") {
    o.mode = Mode::kBenchmark;
  } else {
    return false;
  }
  return true;
}

void parse_value(const std::string& flag, const std::string& value, Options& o) {
  struct Integer {
    const char* flag;
    int64_t* value;
    int64_t least;
  };
  for (const Integer& i :
       {Integer{"--max-new-tokens", &o.max_new_tokens, 1}, Integer{"--seed", &o.seed, 0},
        Integer{"--chunk", &o.chunk, 1}, Integer{"--threads", &o.threads, 1}, Integer{"--pp", &o.pp, 0},
        Integer{"--tg", &o.tg, 0}, Integer{"--depth", &o.depth, 0}, Integer{"--force", &o.force, 0}}) {
    if (flag == i.flag) {
      *i.value = parse_integer(flag, value, i.least);
      if (flag == "--force") o.mode = Mode::kForce;
      return;
    }
  }
  if (flag == "--model") {
    o.model = value;
  } else if (flag == "--artifact") {
    o.model = value + "/model.pte";
  } else if (flag == "--tokens") {
    o.tokens = parse_tokens(flag, value);
  } else if (flag == "--tokens-file") {
    o.tokens = parse_tokens(flag, read_file(value));
  } else if (flag == "--temperature") {
    o.temperature = parse_temperature(value);
  } else if (flag == "--cpu-mask") {
    o.cpu_mask = value;
  } else if (flag == "--logits") {
    o.logits = value;
  } else if (flag == "--states") {
    o.states = value;
  } else {
    throw std::runtime_error("unknown option " + flag + ": see adakv_runner --help");
  }
}

}  // namespace

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (parse_switch(flag, o)) continue;
    if (flag.rfind("--", 0) != 0 || i + 1 >= argc) {
      throw std::runtime_error("cannot use '" + flag + "': see adakv_runner --help");
    }
    parse_value(flag, argv[++i], o);
  }
  if (o.model.empty()) throw std::runtime_error("--model is missing");
  if (o.tokens.empty()) throw std::runtime_error("the prompt is empty: pass --tokens or --tokens-file");
  const unsigned cores = std::thread::hardware_concurrency();  // 0: unknown
  if (cores > 0 && o.threads > int64_t(cores)) {
    throw std::runtime_error("--threads " + std::to_string(o.threads) + " is more than the " + std::to_string(cores) +
                             " cores this process may use");
  }
  if (o.mode == Mode::kBenchmark && o.pp + o.tg == 0) throw std::runtime_error("--bench needs --pp or --tg");
  if (o.mode == Mode::kForce && o.force >= int64_t(o.tokens.size())) {
    throw std::runtime_error("--force takes fewer tokens than there are (" + std::to_string(o.tokens.size()) + ")");
  }
  return o;
}

}  // namespace adakv::runner
