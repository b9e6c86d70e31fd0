// One attention layer driven through the four operators with random inputs, and what it should have stored.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "cache/cache.h"
#include "cache/tile.h"
#include "check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, size) ((void)(begin), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(begin, size) ((void)(begin), (void)(size))
#endif

namespace adakv::testing {

struct Shape {
  int dim = 64, kv_heads = 2, group = 3, window = 16, chunk = 16, window_bits = 8, departure = 1;
  std::vector<int> capacities = {20, 30, 15, 20, 10};
  bool integer_logits = false;  // tiers from integers instead of features, so that they are equal on every machine
  int vocab = 50;
  int mean_gain = 1;
  bool exact = false;  // 16 bits throughout, which attention multiplies in float

  int tiers() const { return int(capacities.size()); }
  int heads() const { return kv_heads * group; }
  // The longest context that the capacities hold.
  int context() const {
    return ((std::accumulate(capacities.begin(), capacities.end(), 0) + window) / departure + 1) * departure;
  }
  int lag() const { return departure > 1 ? window - 1 : window - chunk; }
  int ring() const { return (window + departure - 1 + 15) / 16 * 16; }
  Leaving leaving() const { return {window, departure}; }
};

// Widths of a row with at least two different bands, as the layout codes them.
inline int mixed_bits(Random& random, int dim) {
  constexpr int kBand[] = {2, 3, 4, 8};
  int bits, distinct;
  do {
    bits = distinct = 0;
    for (int b = 0; b < n_bands(dim); ++b) {
      bits |= kBand[random.integer(0, 3)] << (8 * b);
      distinct += ((bits >> (8 * b)) & 255) != (bits & 255);
    }
  } while (distinct == 0);
  return bits;
}

inline int random_bits(Random& random, int dim, int side) {
  constexpr int kUniform[] = {2, 3, 4, 8, 16};
  return side == kValue || random.integer(0, 1) ? kUniform[random.integer(0, 4)] : mixed_bits(random, dim);
}

// The layer's packed buffer with a gap after every block. Under AddressSanitizer gaps cannot be touched; else
// gaps_intact() tells whether they were written. Starts full of garbage, which no result may show.
class CacheBuffer {
 public:
  CacheBuffer(const Shape& shape, Random& random) {
    int end = 0;
    const auto block = [&](int bytes) {
      const int begin = end;
      blocks_.push_back({begin, bytes});
      end = (begin + bytes + 15) / 16 * 16 + 16 * random.integer(0, 2);
      return begin;
    };
    for (int unit = 0; unit < 2 * shape.kv_heads; ++unit) {
      const int mode = random.integer(0, 1);
      for (int s = 0; s < kFirstTier + shape.tiers(); ++s) {
        Segment segment{16, 1, 0, 0, kRms};
        if (s == kWindow) segment = {shape.exact ? 16 : shape.window_bits, shape.ring(), 0, 0, kRms};
        if (s >= kFirstTier) {
          const int bits = shape.exact ? 16 : random_bits(random, shape.dim, unit % 2);
          segment = {bits, shape.capacities[size_t(s - kFirstTier)], 0, 0, mode};
        }
        const int whole = s == kSink ? 1 : (segment.rows + kBlockSlots - 1) / kBlockSlots * kBlockSlots;
        segment.codes_offset = block(whole * row_bytes(segment.bits, shape.dim));
        segment.scale_offset = block(whole * scale_bytes(segment.bits));
        layout.push_back(segment);
      }
    }
    storage_.reset(new uint8_t[size_t(end)]);
    size_ = end;
    std::fill_n(storage_.get(), size_, kGarbage);
    for_gaps([&](uint8_t* begin, int n) { ASAN_POISON_MEMORY_REGION(begin, size_t(n)); });
  }
  ~CacheBuffer() { ASAN_UNPOISON_MEMORY_REGION(storage_.get(), size_t(size_)); }
  CacheBuffer(const CacheBuffer&) = delete;
  CacheBuffer& operator=(const CacheBuffer&) = delete;

  uint8_t* data() { return storage_.get(); }

  std::vector<uint8_t> bytes() const {
    std::vector<uint8_t> all;
    for (const auto& [begin, n] : blocks_) all.insert(all.end(), storage_.get() + begin, storage_.get() + begin + n);
    return all;
  }

  bool gaps_intact() const {
    bool intact = true;
#if !defined(__SANITIZE_ADDRESS__)
    for_gaps([&](const uint8_t* begin, int n) { intact &= std::count(begin, begin + n, kGarbage) == n; });
#endif
    return intact;
  }

  std::vector<Segment> layout;  // [2 KV, 2 + K]

 private:
  static constexpr uint8_t kGarbage = 0xff;

  template <typename F>
  void for_gaps(F&& f) const {
    for (size_t i = 0; i < blocks_.size(); ++i) {
      const int begin = blocks_[i].first + blocks_[i].second;
      const int end = i + 1 < blocks_.size() ? blocks_[i + 1].first : size_;
      if (begin < end) f(storage_.get() + begin, end - begin);
    }
  }

  std::vector<std::pair<int, int>> blocks_;  // offset, bytes
  std::unique_ptr<uint8_t[]> storage_;
  int size_ = 0;
};

// Scratch of exactly so many bytes at the worst alignment, full of NaN, and guarded like the gaps above.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : bytes_(size_t(bytes)), storage_(bytes_ + 256, 0xff) {
    begin_ = storage_.data() + (64 - reinterpret_cast<uintptr_t>(storage_.data()) % 64) + 1;
    ASAN_POISON_MEMORY_REGION(begin_ + bytes_, 128);
  }
  ~Workspace() { ASAN_UNPOISON_MEMORY_REGION(begin_ + bytes_, 128); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  uint8_t* begin() const { return begin_; }

  bool intact() const {
#if defined(__SANITIZE_ADDRESS__)
    return true;
#else
    return std::count(begin_ + bytes_, begin_ + bytes_ + 128, 0xff) == 128;
#endif
  }

 private:
  size_t bytes_;
  std::vector<uint8_t> storage_;
  uint8_t* begin_;
};

struct Layer {
  Layer(const Shape& s, uint64_t seed)
      : shape(s),
        random(seed),
        cache(s, random),
        capacities(s.capacities.begin(), s.capacities.end()),
        progress(size_t(1 + s.tiers()), 0),
        history(size_t(s.context()), -1),
        tiers(size_t(s.context()), 0xee),
        observed(size_t(s.ring()) * kObservations, -1.0f),
        attention(size_t(s.ring()) * kAttentionSums, -1),
        last_logits(size_t(s.vocab), -1.0f),
        surprisal(size_t(s.context()), -1.0f),
        out(size_t(s.context()) * s.heads() * s.dim, -1.0f) {
    const size_t n = size_t(s.context());
    qkv = random.normals(n * (s.heads() + 2 * s.kv_heads) * s.dim);
    for (auto* table : {&cos, &sin}) {
      table->resize(n * s.dim / 2);
      for (float& v : *table) v = random.fraction();
    }
    for (auto* mean : {&k_mean, &v_mean}) {
      *mean = random.normals(size_t(s.kv_heads) * s.dim);
      for (float& v : *mean) v *= float(s.mean_gain);
    }
    for (auto* matrix : {&k_columns, &q_columns}) {  // about the norm of an orthonormal one
      *matrix = random.normals(size_t(s.kv_heads) * s.dim * s.dim);
      for (float& v : *matrix) v *= s.dim < 64 ? 0.25f : 0.0625f;
    }
    for (float& v : q_columns) v /= std::sqrt(float(s.dim));
    vocab_logits = random.normals(n * s.vocab);
    log_frequency = random.normals(size_t(s.vocab));
    mix = random.normals(size_t(kFeatures) * s.tiers());
    tokens.resize(n);
    for (int64_t& token : tokens) token = random.integer(0, s.vocab - 1);
    integer_logits.resize(n * s.tiers());
    for (float& v : integer_logits) v = float(random.integer(0, 1000));
  }

  // One step over positions p .. p + count - 1. False if the tiers are full.
  bool step(int p, int count, const ParallelFor& parallel = serial_for) {
    const int n = shape.tiers(), row = (shape.heads() + 2 * shape.kv_heads) * shape.dim;
    const Leaving leaving = shape.leaving();
    const int rows = int(leaving.rows(count)), first = int(leaving.left(p - 1));
    std::vector<float> features(size_t(rows) * kFeatures), logits(size_t(rows) * n, 0.0f);
    const int64_t* ids = tokens.data() + p;
    depart(ids, count, p, log_frequency.data(), history.data(), observed.data(), attention.data(), shape.ring(),
           shape.heads(), shape.lag(), leaving, features.data());
    for (int i = 0; i < rows * n; ++i) {
      float& logit = logits[size_t(i)];
      if (shape.integer_logits) {
        logit = integer_logits[size_t((first + shape.window) * n + i) % integer_logits.size()];
      } else {
        for (int f = 0; f < kFeatures; ++f)
          logit += features[size_t(i / n * kFeatures + f)] * mix[size_t(f * n + i % n)];
      }
    }
    std::vector<int32_t> plan(size_t(rows) * (2 + n));
    if (!assign(logits.data(), count, p, capacities.data(), n, progress.data(), tiers.data(), leaving, plan.data())) {
      return false;
    }
    // Copies of exactly the chunk, so that nothing beyond it can be read.
    const std::vector<float> chunk(qkv.begin() + int64_t(p) * row, qkv.begin() + int64_t(p + count) * row);
    std::vector<float> result(size_t(count) * shape.heads() * shape.dim);
    AttendArgs args{};
    args.qkv = chunk.data();
    args.cos = cos.data();
    args.sin = sin.data();
    args.plan = plan.data();
    args.k_mean = k_mean.data();
    args.v_mean = v_mean.data();
    args.k_columns = k_columns.data();
    args.q_columns = q_columns.data();
    args.layout = cache.layout.data();
    args.cache = cache.data();
    args.attention = attention.data();
    args.out = result.data();
    args.p = p;
    args.count = count;
    args.n_heads = shape.heads();
    args.n_kv_heads = shape.kv_heads;
    args.head_dim = shape.dim;
    args.n_tiers = n;
    args.lag = shape.lag();
    args.leaving = leaving;
    const Workspace workspace(attend_workspace(args));
    args.workspace = workspace.begin();
    attend(args, parallel);
    workspace_intact &= workspace.intact();
    std::copy(result.begin(), result.end(), out.begin() + int64_t(p) * shape.heads() * shape.dim);
    const std::vector<float> predicted(vocab_logits.begin() + int64_t(p) * shape.vocab,
                                       vocab_logits.begin() + int64_t(p + count) * shape.vocab);
    observe(predicted.data(), ids, count, p, shape.vocab, observed.data(), shape.ring(), last_logits.data(),
            surprisal.data() + p, parallel);
    return true;
  }

  // The whole context, in chunks of the given sizes over and over, also cut at departures where features matter: they
  // count what a token received before the chunk with which it leaves. False if the tiers are full too early.
  bool run(const std::vector<int>& sizes, const ParallelFor& parallel = serial_for) {
    for (int p = 0, i = 0; p < shape.context(); ++i) {
      int count = std::min(sizes[size_t(i) % sizes.size()], shape.context() - p);
      if (shape.departure > 1 && !shape.integer_logits) count = std::min(count, shape.departure - p % shape.departure);
      if (!step(p, count, parallel)) return false;
      p += count;
    }
    return true;
  }

  Shape shape;
  Random random;
  CacheBuffer cache;
  std::vector<float> qkv, cos, sin, k_mean, v_mean, k_columns, q_columns, vocab_logits, log_frequency, mix,
      integer_logits;
  std::vector<int64_t> tokens;
  std::vector<int32_t> capacities, progress, history;
  std::vector<uint8_t> tiers;
  std::vector<float> observed;
  std::vector<int64_t> attention;
  std::vector<float> last_logits, surprisal, out;
  bool workspace_intact = true;
};

// What a layer that ran to the end must have stored and answered: every row straight from its definition, at its
// position instead of in a slot, and attention in double precision.
class Expected {
 public:
  explicit Expected(const Layer& layer) : l_(layer), s_(layer.shape) {}

  // Row of a unit (2 * kv head + side) at a position, as the window holds it or after it left.
  std::vector<float> row(int unit, int position, bool left_window) const {
    std::vector<float> x = stored_form(unit, position);
    const Segment* segments = &l_.cache.layout[size_t(unit * (kFirstTier + s_.tiers()))];
    if (position == 0) return as_stored(x, segments[kSink]);
    x = as_stored(x, segments[kWindow]);
    const Segment& tier = segments[kFirstTier + (left_window ? l_.tiers[size_t(position)] : 0)];
    return left_window && tier.bits != segments[kWindow].bits ? as_stored(x, tier) : x;
  }

  // Output of one head for the query at a position, its attention to every position up to there, and the
  // largest norm of the V rows it sees.
  std::vector<double> attend(int head, int query, std::vector<double>* probabilities, double* range) {
    *range = 0;
    const int unit = 2 * (head / s_.group);
    std::vector<float> q(size_t(s_.dim));
    rotate(projection(query, head), query, q.data());
    q = product(l_.q_columns, unit / 2, q);
    std::vector<double> weights;
    double peak = -1e300, total = 0;
    for (int j = 0; j <= query; ++j) {
      const std::vector<float>& k = cached(unit, j, query);
      double score = 0;
      for (int c = 0; c < s_.dim; ++c) score += double(q[size_t(c)]) * k[size_t(c)];
      weights.push_back(score);
      peak = std::max(peak, weights.back());
    }
    for (double& w : weights) total += w = std::exp(w - peak);
    std::vector<double> sum(size_t(s_.dim), 0.0);
    for (int j = 0; j <= query; ++j) {
      weights[size_t(j)] /= total;
      const std::vector<float>& v = cached(unit + 1, j, query);
      double square = 0;
      for (float x : v) square += double(x) * x;
      *range = std::max(*range, std::sqrt(square));
      for (int c = 0; c < s_.dim; ++c) sum[size_t(c)] += weights[size_t(j)] * v[size_t(c)];
    }
    for (int h = 1; h < s_.dim; h *= 2) {  // Hadamard
      for (int c = 0; c < s_.dim; ++c) {
        if (c & h) continue;
        const double a = sum[size_t(c)], b = sum[size_t(c + h)];
        sum[size_t(c)] = a + b;
        sum[size_t(c + h)] = a - b;
      }
    }
    for (int c = 0; c < s_.dim; ++c) {
      sum[size_t(c)] = sum[size_t(c)] / std::sqrt(double(s_.dim)) + l_.v_mean[size_t(unit / 2 * s_.dim + c)];
    }
    *probabilities = std::move(weights);
    return sum;
  }

 private:
  const float* projection(int position, int slot) const {
    return &l_.qkv[(size_t(position) * size_t(s_.heads() + 2 * s_.kv_heads) + size_t(slot)) * size_t(s_.dim)];
  }

  void rotate(const float* x, int position, float* out) const {
    const int half = s_.dim / 2;
    for (int j = 0; j < half; ++j) {
      const float c = l_.cos[size_t(position * half + j)], s = l_.sin[size_t(position * half + j)];
      out[j] = x[j] * c - x[half + j] * s;
      out[half + j] = x[half + j] * c + x[j] * s;
    }
  }

  std::vector<float> stored_form(int unit, int position) const {
    const int head = unit / 2, side = unit % 2;
    const float* row = projection(position, s_.heads() + side * s_.kv_heads + head);
    std::vector<float> x(row, row + s_.dim);
    if (side == 0) rotate(row, position, x.data());
    const std::vector<float>& mean = side == 0 ? l_.k_mean : l_.v_mean;
    for (int j = 0; j < s_.dim; ++j) x[size_t(j)] -= mean[size_t(head * s_.dim + j)];
    if (side == 0) return product(l_.k_columns, head, x);
    hadamard(x.data(), s_.dim);
    return x;
  }

  // A head's matrix, given by its columns, times x, summed over columns in order.
  std::vector<float> product(const std::vector<float>& matrices, int head, const std::vector<float>& x) const {
    std::vector<float> y(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const float* column = &matrices[size_t(head) * x.size() * x.size() + i];
      y[i] = x[0] * column[0];
      for (size_t j = 1; j < x.size(); ++j) y[i] = y[i] + x[j] * column[j * x.size()];
    }
    return y;
  }

  std::vector<float> as_stored(const std::vector<float>& x, const Segment& segment) const {
    std::vector<uint16_t> codes(x.size());
    std::vector<float> back(x.size());
    uint8_t scale[2];
    quantize_row(x.data(), segment.bits, s_.dim, codes.data(), scale);
    dequantize_row(codes.data(), scale, segment.bits, ScaleMode(segment.scale_mode), s_.dim, back.data());
    return back;
  }

  const std::vector<float>& cached(int unit, int position, int query) {
    const bool left = position >= 1 && position < s_.leaving().left(query);
    rows_.resize(size_t(2 * s_.kv_heads * s_.context() * 2));
    std::vector<float>& entry = rows_[size_t((unit * s_.context() + position) * 2 + int(left))];
    if (entry.empty()) entry = row(unit, position, left);
    return entry;
  }

  const Layer& l_;
  const Shape& s_;
  std::vector<std::vector<float>> rows_;
};

}  // namespace adakv::testing
