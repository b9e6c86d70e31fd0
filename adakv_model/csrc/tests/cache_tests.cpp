// depart, assign, attend and observe over whole contexts.
#include <algorithm>
#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "layer.h"

namespace adakv::testing {
namespace {

ParallelFor threads(int count) {
  return {count, [](int n, const std::function<void(int)>& worker) {
            std::vector<std::thread> helpers;
            for (int i = 0; i < n; ++i) helpers.emplace_back(worker, i);
            for (auto& helper : helpers) helper.join();
          }};
}

// How far attention may be from double precision over the same dequantized rows. With 16 bits throughout, what float
// sums lose. Otherwise a query's codes err by up to 1/2 of 127 of its band's peak, some 2.5 standard deviations: 0.6 %
// of a standard deviation in every channel. Its scores, which spread by 1 to 2.5 here, then err by about 0.015, or 0.06
// in the worst of some ten thousands, and probabilities by that part of themselves. V weights err by up to 1/2 of 127
// of the largest in their group of 32: sqrt(32) * 0.29 / 127 = 1.3 % of the value range if one group has all the
// weight.
struct Tolerance {
  double output;  // norm of the error, relative to the largest norm of the V rows seen (worst of 35,000: 0.015)
  double sum;     // of attention, relative (worst of 15,000: 0.027)
};
constexpr Tolerance kExact = {2e-5, 2e-5}, kInteger = {0.03, 0.05};

// Queries at the given positions against double precision; with every position given, attention sums too.
void check_outputs(const Layer& layer, const std::vector<int>& queries) {
  const Shape& s = layer.shape;
  const Tolerance& tolerance = s.exact ? kExact : kInteger;
  Expected expected(layer);
  const int n = s.context();
  std::vector<double> own(size_t(n), 0.0), own_squared(own), received(own), probabilities;
  for (int q : queries) {
    for (int head = 0; head < s.heads(); ++head) {
      double range, error = 0;
      const std::vector<double> want = expected.attend(head, q, &probabilities, &range);
      for (int c = 0; c < s.dim; ++c) {
        const double d = layer.out[(size_t(q) * s.heads() + head) * s.dim + c] - want[size_t(c)];
        error += d * d;
      }
      error = std::sqrt(error) / std::max(range, 1.0);
      CHECK(error <= tolerance.output, "query %d of %d, head %d: error %g of the range", q, n, head, error);
      own[size_t(q)] += probabilities[size_t(q)];
      own_squared[size_t(q)] += probabilities[size_t(q)] * probabilities[size_t(q)];
      for (int j = std::max(1, q - s.lag()); j < q; ++j) received[size_t(j)] += probabilities[size_t(j)];
    }
  }
  if (int(queries.size()) < n) return;
  for (int j = int(s.leaving().left(n - 1)); j < n; ++j) {
    const int64_t* sums = &layer.attention[size_t(j % s.ring()) * kAttentionSums];
    const double want[] = {own[size_t(j)], own_squared[size_t(j)], received[size_t(j)]};
    for (int i = 0; i < kAttentionSums; ++i) {
      const double got = double(sums[i]) * kAttentionUnit, most = tolerance.sum * (i == kOwnSquared ? 2 : 1) * want[i];
      CHECK(std::fabs(got - want[i]) < most + 3e-5, "attention sum %d at %d: %g, not %g", i, j, got, want[i]);
    }
  }
}

std::vector<int> all_positions(const Shape& s) {
  std::vector<int> all(size_t(s.context()));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// Everything that must be equal to the last bit; names what is not.
std::string difference(const Layer& a, const Layer& b) {
  std::string names;
  if (a.cache.bytes() != b.cache.bytes()) names += " cache";
  if (a.tiers != b.tiers) names += " tiers";
  if (a.progress != b.progress) names += " progress";
  if (a.history != b.history) names += " history";
  if (a.observed != b.observed) names += " observed";
  if (a.attention != b.attention) names += " attention";
  if (a.surprisal != b.surprisal) names += " surprisal";
  if (a.last_logits != b.last_logits) names += " last_logits";
  if (a.out != b.out) names += " out";
  return names;
}

Shape random_shape(Random& random) {
  Shape s;
  s.dim = 16 << random.integer(0, 4);
  s.kv_heads = random.integer(1, 3);
  s.group = random.integer(1, 4);
  s.window = random.integer(1, 40);
  if (random.integer(0, 1)) s.departure = random.integer(0, 1) ? 32 : random.integer(2, 20);
  s.chunk = random.integer(1, int(s.leaving().largest_chunk()));
  s.exact = random.integer(0, 2) == 0;
  s.integer_logits = random.integer(0, 1);
  s.window_bits = random.integer(0, 1) ? 8 : 16;
  s.vocab = random.integer(2, 40);
  s.capacities.resize(size_t(random.integer(1, 5)));
  for (int& capacity : s.capacities) capacity = random.integer(0, 8);
  if (std::accumulate(s.capacities.begin(), s.capacities.end(), 0) == 0) s.capacities[0] = 1;
  return s;
}

std::vector<int> random_sizes(Random& random, int chunk) {
  std::vector<int> sizes(size_t(random.integer(1, 4)));
  for (int& size : sizes) size = random.integer(1, chunk);
  return sizes;
}

TEST(random_shapes_in_random_chunks_equal_token_by_token_and_double_precision) {
  for (uint64_t seed = 0; seed < 250; ++seed) {
    Random random(seed);
    const Shape shape = random_shape(random);
    const std::vector<int> sizes = random_sizes(random, shape.chunk);
    Layer single(shape, seed), chunked(shape, seed), threaded(shape, seed);
    const ParallelFor loops[] = {threads(2), threads(3), threads(4)};
    CHECK(single.run({1}) && chunked.run(sizes), "seed %d: tiers are full", int(seed));
    CHECK(difference(single, chunked).empty(), "seed %d:%s", int(seed), difference(single, chunked).c_str());
    if (seed % 10 == 0) {
      CHECK(threaded.run(sizes, loops[seed % 3]));
      CHECK(difference(chunked, threaded).empty(), "seed %d:%s", int(seed), difference(chunked, threaded).c_str());
    }
    CHECK(single.cache.gaps_intact() && chunked.cache.gaps_intact(), "seed %d: wrote outside the rows", int(seed));
    CHECK(single.workspace_intact && chunked.workspace_intact, "seed %d: wrote past the workspace", int(seed));
    const int before = failures();
    check_outputs(chunked, all_positions(shape));
    CHECK(failures() == before, "seed %d: dim %d, window %d at %d bits, departure %d", int(seed), shape.dim,
          shape.window, shape.window_bits, shape.departure);
    CHECK(check_step(shape.context(), 1, chunked.progress[0], shape.context(), shape.leaving()) ==
              StepError::kContextFull,
          "seed %d: the context is not full", int(seed));
  }
}

// Several parts of a tier, and a window longer than one.
TEST(contexts_of_several_parts_match_double_precision) {
  for (int trial = 0; trial < 6; ++trial) {
    Shape shape;
    shape.dim = 32;
    shape.group = trial == 0 ? 9 : 3;
    shape.capacities = {530, 90, 30};
    shape.departure = trial % 2 ? 32 : 1;
    shape.chunk = trial % 2 ? 32 : 12;
    shape.exact = trial / 2 == 1;
    if (trial / 2 == 2) {
      shape.window = 520;
      shape.capacities = {20, 40};
    }
    Layer single(shape, 3), chunked(shape, 3), threaded(shape, 3);
    CHECK(single.run({1}) && chunked.run({shape.chunk, 5}));
    CHECK(difference(single, chunked).empty(), "chunks:%s", difference(single, chunked).c_str());
    CHECK(single.workspace_intact && chunked.workspace_intact);
    if (trial < 2) {
      CHECK(threaded.run({shape.chunk, 5}, threads(3)));
      CHECK(difference(chunked, threaded).empty(), "threads:%s", difference(chunked, threaded).c_str());
    }
    const int last = shape.context() - 1;
    check_outputs(chunked, {0, 1, 15, 16, 17, 255, 256, 257, 528, 529, 530, 560, last - 1, last});
  }
}

TEST(a_chunk_of_single_tokens_has_room_for_their_parts) {
  Shape shape;
  shape.kv_heads = 1;
  shape.capacities = {2, 2, 2, 2, 2, 2, 2, 2};
  Layer layer(shape, 4);
  CHECK(layer.run({2}) && layer.workspace_intact);
}

TEST(position_zero_starts_over) {
  const Shape shape;
  Layer fresh(shape, 5), reused(shape, 5);
  CHECK(fresh.run({7}) && reused.run({16}) && reused.run({7}));
  CHECK(difference(fresh, reused).empty(), "%s", difference(fresh, reused).c_str());
}

TEST(extreme_projections_stay_finite_and_chunk_invariant) {
  for (float value : {0.0f, 1e-40f, 1e-5f, 1.0f, 6e4f}) {
    for (bool alternate : {false, true}) {
      Shape shape;
      shape.mean_gain = 0;
      Layer single(shape, 6), chunked(shape, 6);
      for (Layer* layer : {&single, &chunked}) {
        for (size_t i = 0; i < layer->qkv.size(); ++i) layer->qkv[i] = alternate && i % 3 ? -value : value;
      }
      CHECK(single.run({1}) && chunked.run({16, 3}), "%g", value);
      CHECK(difference(single, chunked).empty(), "%g:%s", value, difference(single, chunked).c_str());
      for (float v : chunked.out) CHECK(std::isfinite(v), "%g gives %g", value, v);
      if (value == 0.0f) CHECK(std::count(chunked.out.begin(), chunked.out.end(), 0.0f) == int64_t(chunked.out.size()));
    }
  }
}

TEST(attention_is_not_recorded_with_a_negative_lag) {
  Shape shape;
  shape.chunk = shape.window + 1;  // lag -1
  Layer layer(shape, 7);
  CHECK(layer.run({16}));
  CHECK(std::count(layer.attention.begin(), layer.attention.end(), 0) == int64_t(layer.attention.size()));
}

TEST(full_tiers_spill_to_the_nearest_narrower_first) {
  const int32_t capacities[] = {3, 4, 2, 9};
  struct {
    int wanted;
    std::vector<int32_t> fill;
    int tier;
  } const spills[] = {{2, {3, 0, 2, 1}, 1}, {0, {3, 0, 2, 1}, 1}, {3, {3, 0, 2, 1}, 3}, {1, {0, 4, 0, 0}, 0},
                      {3, {2, 4, 2, 9}, 0}, {0, {3, 4, 2, 8}, 3}, {2, {3, 4, 2, 8}, 3}};
  for (const auto& spill : spills) {
    std::vector<float> logits(4, 0.0f);
    logits[size_t(spill.wanted)] = 1.0f;
    std::vector<int32_t> progress = {20}, plan(6);
    progress.insert(progress.end(), spill.fill.begin(), spill.fill.end());
    std::vector<uint8_t> tiers(30, 0);
    CHECK(assign(logits.data(), 1, 20, capacities, 4, progress.data(), tiers.data(), {8, 1}, plan.data()));
    CHECK(plan[0] == spill.tier, "wanted %d: tier %d, not %d", spill.wanted, plan[0], spill.tier);
    CHECK(plan[1] == spill.fill[size_t(spill.tier)] && progress[size_t(1 + spill.tier)] == plan[1] + 1);
    CHECK(tiers[12] == spill.tier && tiers[20] == kInWindow && progress[0] == 21);
  }
}

TEST(equal_logits_take_the_first_tier) {
  const int32_t capacities[] = {5, 5};
  const float logits[] = {1.0f, 1.0f};
  std::vector<int32_t> progress = {9, 0, 0}, plan(4);
  std::vector<uint8_t> tiers(20);
  CHECK(assign(logits, 1, 9, capacities, 2, progress.data(), tiers.data(), {8, 1}, plan.data()));
  CHECK(plan[0] == 0);
}

TEST(assign_refuses_when_no_tier_has_room) {
  Shape shape;
  shape.capacities = {3, 4};
  Layer layer(shape, 8);
  layer.capacities = {3, 3};  // one row short of the context
  for (int p = 0; p + 1 < shape.context(); ++p) CHECK(layer.step(p, 1), "position %d", p);
  CHECK(!layer.step(shape.context() - 1, 1));
  CHECK(layer.cache.gaps_intact());
}

TEST(check_step_names_the_reason) {
  CHECK(check_step(0, 1, 0, 10, {4, 1}) == StepError::kOk);
  CHECK(check_step(0, 4, 7, 10, {4, 1}) == StepError::kOk);  // a reset
  CHECK(check_step(6, 4, 6, 10, {4, 1}) == StepError::kOk);
  CHECK(check_step(0, 0, 0, 10, {4, 1}) == StepError::kChunkSize);
  CHECK(check_step(0, 5, 0, 10, {4, 1}) == StepError::kChunkSize);
  CHECK(check_step(3, 1, 4, 10, {4, 1}) == StepError::kPosition);
  CHECK(check_step(5, 1, 4, 10, {4, 1}) == StepError::kPosition);
  CHECK(check_step(-1, 1, 4, 10, {4, 1}) == StepError::kPosition);
  CHECK(check_step(7, 4, 7, 10, {4, 1}) == StepError::kContextFull);
  CHECK(check_step(10, 1, 10, 10, {4, 1}) == StepError::kContextFull);
}

TEST(a_block_leaves_once_a_multiple_of_the_departure_is_appended) {
  const Leaving leaving{3, 4};
  const int lefts[] = {1, 1, 1, 1, 2, 2, 2, 2, 6, 6, 6, 6, 10};  // by position
  for (int x = 0; x < 13; ++x) CHECK(leaving.left(x) == lefts[x], "position %d: %d", x, int(leaving.left(x)));
  CHECK(leaving.left(-1) == 1 && leaving.rows(1) == 4 && leaving.rows(4) == 7 && leaving.largest_chunk() == 4);
  CHECK(check_step(8, 4, 8, 20, leaving) == StepError::kOk &&
        check_step(8, 5, 8, 20, leaving) == StepError::kChunkSize);

  // Tokens 5 .. 8 at once: 2 to 5 leave, the last of them a token of the chunk, and the next four rows say so.
  const int32_t capacities[] = {2, 20};
  std::vector<int32_t> progress = {5, 1, 0}, plan(7 * 4);
  std::vector<uint8_t> tiers(20, 0);
  const std::vector<float> logits(7 * 2, 0.0f);
  CHECK(assign(logits.data(), 4, 5, capacities, 2, progress.data(), tiers.data(), leaving, plan.data()));
  const std::vector<int32_t> want = {0, 1, 2,  0,  1, 0, 2,  1,  1, 1, 2,  2,  1, 2,
                                     2, 3, -1, -1, 2, 3, -1, -1, 2, 3, -1, -1, 2, 3};
  CHECK(plan == want && progress == std::vector<int32_t>({9, 2, 3}));
  CHECK(tiers[2] == 0 && tiers[3] == 1 && tiers[4] == 1 && tiers[5] == 1 && tiers[6] == kInWindow);
}

TEST(a_leaving_token_of_the_chunk_itself_has_its_frequency_and_repetition) {
  const Leaving leaving{3, 4};
  std::vector<float> observed(16 * kObservations, 3.0f), frequency = {-1.0f, -2.0f}, features(7 * kFeatures, 7.0f);
  std::vector<int64_t> attention(16 * kAttentionSums, 5);
  std::vector<int32_t> history(20, 1);
  const int64_t tokens[] = {1, 0, 0, 1};
  depart(tokens, 4, 5, frequency.data(), history.data(), observed.data(), attention.data(), 16, 6, 2, leaving,
         features.data());
  const float* own = &features[3 * kFeatures];  // of token 5, the chunk's first
  CHECK(features[0] == 3.0f && own[0] == -2.0f && own[1] == 0.0f && own[6] == std::log1p(5.0f));
  CHECK(std::count(features.begin() + 4 * kFeatures, features.end(), 0.0f) == 3 * kFeatures);
}

TEST(features_match_double_arithmetic) {
  constexpr int kWindowSize = 4, kCount = 3, kHeads = 12, kLag = 2, kPosition = 9;
  Random random(9);
  std::vector<float> observed = random.normals(kWindowSize * kObservations), features(kCount * kFeatures);
  std::vector<int64_t> attention(kWindowSize * kAttentionSums);
  for (int64_t& sum : attention) sum = random.integer(0, kHeads << 24);
  for (size_t r = 0; r < kWindowSize; ++r) observed[r * kObservations + kRepeats] = float(random.integer(0, 9));
  const std::vector<float> seen = observed, frequency = random.normals(6);
  const std::vector<int64_t> sums = attention;
  std::vector<int32_t> history = {1, 5, 5, 1, 2, 5, 1, 1, 3, -1, -1, -1};
  const int64_t tokens[kCount] = {5, 4, 5};
  depart(tokens, kCount, kPosition, frequency.data(), history.data(), observed.data(), attention.data(), kWindowSize,
         kHeads, kLag, {kWindowSize, 1}, features.data());
  const float repeats[kCount] = {3, 0, 4};
  for (int i = 0; i < kCount; ++i) {
    const size_t slot = size_t((kPosition + i) % kWindowSize);
    const float* was = &seen[slot * kObservations];
    const int64_t* sum = &sums[slot * kAttentionSums];
    const double own = double(sum[kOwn]) * kAttentionUnit / kHeads;
    const double variance = std::max(0.0, double(sum[kOwnSquared]) * kAttentionUnit / kHeads - own * own);
    const double received = double(sum[kReceived]) * kAttentionUnit / (kHeads * kLag);
    const double want[kFeatures] = {
        was[kLogFrequency], was[kConfidence],     std::log(variance + 1e-6),         was[kEntropy],
        was[kSurprisal],    std::log(own + 1e-5), std::log1p(double(was[kRepeats])), std::log(received + 1e-5)};
    for (int f = 0; f < kFeatures; ++f) {
      CHECK(std::fabs(features[size_t(i * kFeatures + f)] - want[f]) < 1e-5, "feature %d of %d", f, i);
    }
    CHECK(observed[slot * kObservations + kRepeats] == repeats[i], "repeats of token %d", i);
    CHECK(observed[slot * kObservations + kLogFrequency] == frequency[size_t(tokens[i])]);
    CHECK(history[size_t(kPosition + i)] == tokens[i] && attention[slot * kAttentionSums + kOwn] == 0);
  }
}

TEST(the_sink_and_tokens_still_in_the_window_have_no_features) {
  std::vector<float> observed(8 * kObservations, 3.0f), frequency(4, 1.0f), features(9 * kFeatures, 7.0f);
  std::vector<int64_t> attention(8 * kAttentionSums, 5), tokens(9, 2);
  std::vector<int32_t> history(20);
  for (int p = 0; p < 9; ++p) {  // position 8 would push out position 0, which stays: it is the sink
    depart(&tokens[size_t(p)], 1, p, frequency.data(), history.data(), observed.data(), attention.data(), 8, 6, 2,
           {8, 1}, &features[size_t(p * kFeatures)]);
  }
  CHECK(std::count(features.begin(), features.end(), 0.0f) == 9 * kFeatures);
}

TEST(observe_writes_the_predictions_of_the_right_tokens) {
  constexpr int kVocab = 300, kWindowSize = 7, kCount = 5;
  Random random(10);
  for (int p : {0, 1, 12}) {
    std::vector<float> logits = random.normals(kCount * kVocab), last = random.normals(kVocab),
                       surprisal(kCount, -1.0f);
    for (float& v : logits) v *= 5;
    const std::vector<float> before = last;
    std::vector<float> observed(kWindowSize * kObservations, -1.0f);
    int64_t tokens[kCount];
    for (int64_t& token : tokens) token = random.integer(0, kVocab - 1);
    observe(logits.data(), tokens, kCount, p, kVocab, observed.data(), kWindowSize, last.data(), surprisal.data(),
            threads(3));
    for (int i = 0; i < kCount; ++i) {
      const float* x = i > 0 ? &logits[size_t(i - 1) * kVocab] : before.data();
      double total = 0, entropy = 0;
      for (int v = 0; v < kVocab; ++v) total += std::exp(double(x[v]));
      for (int v = 0; v < kVocab; ++v) entropy -= std::exp(double(x[v])) / total * (x[v] - std::log(total));
      const bool first = p + i == 0;
      const double want[] = {first ? 0 : std::exp(double(*std::max_element(x, x + kVocab))) / total,
                             first ? 0 : entropy, first ? 0 : std::log(total) - x[tokens[i]]};
      const float* seen = &observed[size_t((p + i) % kWindowSize) * kObservations];
      for (int c = 0; c < 3; ++c) {
        CHECK(std::fabs(seen[kConfidence + c] - want[c]) < 1e-5, "position %d, value %d: %g, not %g", p + i, c,
              seen[kConfidence + c], want[c]);
      }
      CHECK(surprisal[size_t(i)] == seen[kSurprisal] && seen[kRepeats] == -1.0f);
    }
    CHECK(std::equal(last.begin(), last.end(), logits.end() - kVocab));
  }
}

}  // namespace
}  // namespace adakv::testing
