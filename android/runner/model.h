// An exported program with its cache, fed in order. Every failure is a std::runtime_error whose text is for people.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace adakv::runner {

struct TierCounts {
  std::vector<int64_t> tokens;  // in each tier
  int64_t bytes = 0;            // of cache, bookkeeping included
};

class Model {
 public:
  explicit Model(const std::string& path);
  ~Model();

  // Append 1 to chunk() tokens; logits [vocabulary] after the last one, valid until the next step.
  const float* step(const std::vector<int64_t>& tokens);

  // The same for any number of tokens, in chunks of at most `most`.
  const float* prefill(const std::vector<int64_t>& tokens, int64_t most);

  // Start a new sequence with the next step.
  void reset() { position_ = 0; }

  // Throw std::runtime_error where `count` tokens are more than the context, or one is outside the vocabulary.
  void check_fits(int64_t count) const;
  void check_tokens(const std::vector<int64_t>& tokens) const;

  // Tokens a prefill step: `wanted`, or the most for 0. Throws std::runtime_error for more than the program takes.
  int64_t prefill_chunk(int64_t wanted) const;

  // Every buffer that the cache keeps between steps, by its name without "cache.".
  void each_state(const std::function<void(const std::string& name, const void* data, size_t bytes)>& visit);

  // Tokens to step by if `count` are left, at most `most`: no chunk crosses a multiple of the position at which tokens
  // leave the window, so that the cache does not depend on how a text was cut.
  int64_t next_chunk(int64_t count, int64_t most) const;

  TierCounts counts();

  int64_t chunk() const { return chunk_; }
  int64_t context() const { return context_; }
  int64_t vocabulary() const { return vocabulary_; }
  int64_t position() const { return position_; }
  const std::vector<int64_t>& eos_ids() const { return eos_ids_; }

 private:
  struct Program;

  int64_t constant(const std::string& name);

  std::unique_ptr<Program> program_;
  int64_t chunk_ = 0, context_ = 0, departure_ = 1, vocabulary_ = 0, layers_ = 0, position_ = 0;
  std::vector<int64_t> eos_ids_;
};

// Size of ExecuTorch's thread pool; call before a model is loaded.
void set_threads(int count);
int64_t thread_count();

}  // namespace adakv::runner
