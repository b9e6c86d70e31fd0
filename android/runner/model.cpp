#include "model.h"

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/platform/platform.h>

#include <algorithm>
#include <fstream>
#include <stdexcept>

// extension/threadpool/threadpool.h, which the wheels leave out.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t count);
  size_t get_thread_count() const;
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace adakv::runner {

namespace {

using executorch::aten::ScalarType;
using executorch::runtime::Error;
using executorch::runtime::EValue;

// The runtime explains failures in its log only: keep its last error instead of printing a page.
std::string& last_error() {
  static std::string text;
  return text;
}

void keep_error(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message,
                size_t length) {
  if (level == et_pal_log_level_t::kError || level == et_pal_log_level_t::kFatal) {
    if (last_error().empty()) last_error().assign(message, length);  // the first names the cause
  }
}

void quiet_runtime() {
  static const bool once =
      executorch::runtime::register_pal(executorch::runtime::PalImpl::create(keep_error, __FILE__));
  (void)once;
}

[[noreturn]] void fail(const std::string& what, Error error) {
  std::string text = what + " (ExecuTorch error " + std::to_string(int(error));
  if (!last_error().empty()) text += ": " + last_error();
  throw std::runtime_error(text + ")");
}

}  // namespace

struct Model::Program : executorch::extension::Module {
  using Module::Module;
  executorch::extension::Method& forward_method() { return *methods_.at("forward").method; }
};

Model::Model(const std::string& path) {
  quiet_runtime();
  if (!std::ifstream(path, std::ios::binary)) throw std::runtime_error("cannot read " + path);
  program_ = std::make_unique<Program>(path, Program::LoadMode::Mmap);
  // The program's tables are checked, so that a damaged file is an error and no crash.
  Error error = program_->load(executorch::runtime::Program::Verification::InternalConsistency);
  if (error != Error::Ok) fail(path + " is not an ExecuTorch program this runtime can read", error);
  error = program_->load_forward();
  if (error == Error::OperatorMissing) fail(path + " needs an operator this runner lacks", error);
  if (error != Error::Ok) fail("cannot load " + path, error);
  chunk_ = constant("get_max_seq_len");
  context_ = constant("get_max_context_len");
  departure_ = constant("get_departure");
  vocabulary_ = constant("get_vocab_size");
  layers_ = constant("get_n_layers");
  const auto ids = program_->execute("get_eos_ids");
  if (!ids.ok()) fail(path + " has no get_eos_ids", ids.error());
  for (const EValue& id : *ids) eos_ids_.push_back(id.toInt());
}

Model::~Model() = default;

int64_t Model::constant(const std::string& name) {
  const auto value = program_->get(name);
  if (!value.ok() || !value->isInt())
    fail("the program has no " + name + ": it is not one of export.py's", value.error());
  return value->toInt();
}

int64_t Model::next_chunk(int64_t count, int64_t most) const {
  int64_t size = std::min({count, most, chunk_});
  if (departure_ > 1) size = std::min(size, departure_ - position_ % departure_);
  return size;
}

const float* Model::step(const std::vector<int64_t>& tokens) {
  if (position_ + int64_t(tokens.size()) > context_) throw std::runtime_error("context full");
  std::vector<int64_t> ids = tokens;
  int64_t at = position_;
  const auto input = executorch::extension::from_blob(ids.data(), {1, int(ids.size())}, ScalarType::Long);
  const auto input_pos = executorch::extension::from_blob(&at, {1}, ScalarType::Long);
  last_error().clear();
  const auto result = program_->forward({input, input_pos});
  if (!result.ok()) fail("the program failed at position " + std::to_string(position_), result.error());
  position_ += int64_t(tokens.size());
  const auto& logits = (*result)[0].toTensor();
  return logits.const_data_ptr<float>() + (logits.numel() - vocabulary_);  // a program has all rows, or the last
}

const float* Model::prefill(const std::vector<int64_t>& tokens, int64_t most) {
  const float* logits = nullptr;
  for (auto begin = tokens.begin(); begin != tokens.end();) {
    const auto end = begin + next_chunk(tokens.end() - begin, most);
    logits = step({begin, end});
    begin = end;
  }
  return logits;
}

void Model::check_fits(int64_t count) const {
  if (count <= context_) return;
  throw std::runtime_error("the prompt has " + std::to_string(count) + " tokens and the program holds " +
                           std::to_string(context_) + ": shorten it, or export with a larger --context");
}

void Model::check_tokens(const std::vector<int64_t>& tokens) const {
  for (int64_t token : tokens) {
    if (token < vocabulary_) continue;
    throw std::runtime_error("token id " + std::to_string(token) + " is outside the vocabulary of " +
                             std::to_string(vocabulary_));
  }
}

int64_t Model::prefill_chunk(int64_t wanted) const {
  if (wanted <= chunk_) return wanted > 0 ? wanted : chunk_;
  throw std::runtime_error("--chunk is at most " + std::to_string(chunk_) + " for this program");
}

void Model::each_state(const std::function<void(const std::string&, const void*, size_t)>& visit) {
  const auto visit_one = [&](const std::string& name) {
    const auto tensor = program_->forward_method().get_attribute("cache." + name);
    if (tensor.ok()) visit(name, tensor->const_data_ptr(), tensor->nbytes());
  };
  for (const char* name : {"progress", "tiers", "history", "observed", "attention", "last_logits"}) visit_one(name);
  for (int64_t layer = 0; layer < layers_; ++layer) visit_one("cache_" + std::to_string(layer));
}

TierCounts Model::counts() {
  TierCounts counts;
  const auto progress = program_->forward_method().get_attribute("cache.progress");
  if (!progress.ok()) fail("the program keeps no cache.progress", progress.error());
  const int32_t* used = progress->const_data_ptr<int32_t>();
  for (int64_t k = 1; k < progress->numel(); ++k) counts.tokens.push_back(used[k]);
  each_state([&](const std::string&, const void*, size_t bytes) { counts.bytes += int64_t(bytes); });
  return counts;
}

void set_threads(int count) {
  quiet_runtime();
  executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(uint32_t(count));
}

int64_t thread_count() { return int64_t(executorch::extension::threadpool::get_threadpool()->get_thread_count()); }

}  // namespace adakv::runner
