// depart, assign and observe: everything a step does besides attention.
#include <algorithm>
#include <cmath>

#include "cache/attend_kernels.h"
#include "cache/cache.h"

namespace adakv {

namespace {

constexpr float kVarianceFloor = 1e-6f, kAttentionFloor = 1e-5f;

void features_of(const float* seen, const int64_t* sums, double attentions, double lag, float* f) {
  const float own = float(double(sums[kOwn]) * kAttentionUnit / attentions);
  const float own_squared = float(double(sums[kOwnSquared]) * kAttentionUnit / attentions);
  const float received = float(double(sums[kReceived]) * kAttentionUnit / attentions / std::max(lag, 1.0));
  const float variance = std::max(own_squared - own * own, 0.0f);
  f[0] = seen[kLogFrequency];
  f[1] = seen[kConfidence];
  f[2] = std::log(variance + kVarianceFloor);
  f[3] = seen[kEntropy];
  f[4] = seen[kSurprisal];
  f[5] = std::log(own + kAttentionFloor);
  f[6] = std::log1p(seen[kRepeats]);
  f[7] = std::log(received + kAttentionFloor);
}

// The wanted tier, else the nearest with a free slot, narrower before wider; -1 if all are full.
int nearest_with_room(int wanted, const int32_t* fill, const int32_t* capacities, int n) {
  for (int distance = 0; distance < n; ++distance) {
    for (int tier : {wanted - distance, wanted + distance}) {
      if (tier >= 0 && tier < n && fill[tier] < capacities[tier]) return tier;
    }
  }
  return -1;
}

}  // namespace

StepError check_step(int64_t input_pos, int64_t tokens, int64_t length, int64_t context, const Leaving& leaving) {
  if (tokens < 1 || tokens > leaving.largest_chunk()) return StepError::kChunkSize;
  if (input_pos != 0 && input_pos != length) return StepError::kPosition;
  if (input_pos + tokens > context) return StepError::kContextFull;
  return StepError::kOk;
}

void depart(const int64_t* tokens, int count, int64_t p, const float* token_log_frequency, int32_t* history,
            float* observed, int64_t* attention, int ring, int64_t n_attentions, int64_t lag, const Leaving& leaving,
            float* features) {
  const int64_t first = leaving.left(p - 1), end = leaving.left(p + count - 1);
  const auto emit = [&](int64_t position) {
    features_of(observed + position % ring * kObservations, attention + position % ring * kAttentionSums,
                double(n_attentions), double(lag), features + (position - first) * kFeatures);
  };
  for (int64_t t = first; t < std::min(end, p); ++t) emit(t);  // before new tokens take their rows
  for (int i = 0; i < count; ++i) {
    const int64_t position = p + i;
    float* seen = observed + position % ring * kObservations;
    const int32_t token = int32_t(tokens[i]);
    std::fill_n(seen, int(kObservations), 0.0f);
    std::fill_n(attention + position % ring * kAttentionSums, int(kAttentionSums), int64_t{0});
    seen[kLogFrequency] = token_log_frequency[token];
    seen[kRepeats] = float(std::count(history, history + position, token));
    history[position] = token;
  }
  for (int64_t t = std::max(first, p); t < end; ++t) emit(t);
  std::fill(features + (end - first) * kFeatures, features + leaving.rows(count) * kFeatures, 0.0f);
}

bool assign(const float* logits, int count, int64_t p, const int32_t* capacities, int n_tiers, int32_t* progress,
            uint8_t* tiers, const Leaving& leaving, int32_t* plan) {
  const int64_t first = leaving.left(p - 1), end = leaving.left(p + count - 1), rows = leaving.rows(count);
  int32_t* fill = progress + 1;
  if (p == 0) std::fill_n(fill, n_tiers, 0);
  std::fill_n(tiers + p, count, kInWindow);
  if (p == 0) tiers[0] = kInSink;
  for (int64_t j = 0; j < rows; ++j) {
    int32_t* row = plan + j * (2 + n_tiers);
    row[0] = row[1] = -1;
    if (j < end - first) {
      const float* wants = logits + j * n_tiers;
      const int wanted = int(std::max_element(wants, wants + n_tiers) - wants);
      const int tier = nearest_with_room(wanted, fill, capacities, n_tiers);
      if (tier < 0) return false;
      row[0] = tier;
      row[1] = fill[tier]++;
      tiers[first + j] = uint8_t(tier);
    }
    std::copy_n(fill, n_tiers, row + 2);
  }
  progress[0] = int32_t(p + count);
  return true;
}

void observe(const float* logits, const int64_t* tokens, int count, int64_t p, int64_t vocab, float* observed, int ring,
             float* last_logits, float* surprisal, const ParallelFor& parallel) {
  const AttendKernels& kernels = attend_kernels();
  parallel(count, [&](int i) {
    float* seen = observed + ((p + i) % ring) * kObservations;
    float stats[3] = {0, 0, 0};
    if (p + i > 0) {
      kernels.prediction_stats(i > 0 ? logits + (i - 1) * vocab : last_logits, vocab, tokens[i], stats);
    }
    std::copy_n(stats, 3, seen + kConfidence);
    surprisal[i] = stats[2];
  });
  std::copy_n(logits + (count - 1) * vocab, vocab, last_logits);
}

}  // namespace adakv
