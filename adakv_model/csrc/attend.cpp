// Append a chunk, demote the rows that leave the window, attend on the packed rows.
//
// A query's softmax is a sum of parts: the sink with the window ring, and every block of 256 rows of every tier.
// Parts, lanes and tiles are anchored to the stored rows, never to the chunk, and rows that a query may not see
// add exact zeros; so a query's result is the same to the last bit however the text is cut into chunks and
// however many threads run. Tier rows are unpacked a tile at a time, once for all queries of a kv head's chunk.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cache.h"
#include "fast_exp.h"
#include "rows.h"

namespace adakv {

namespace {

constexpr int kBlockRows = 256;
constexpr int64_t kMinParallelDots = 2048;  // below this many query x row products, threads cost more than they give
constexpr float kHidden = -std::numeric_limits<float>::infinity();

// The packed rows of one unit: one (kv head, K or V) of the layer's buffer.
struct Unit {
  const Segment* segments;
  uint8_t* cache;
  int dim;

  uint8_t* codes(int segment, int64_t row) const {
    return cache + segments[segment].codes_offset + row * row_bytes(segments[segment].bits, dim);
  }
  uint8_t* scale(int segment, int64_t row) const {
    return cache + segments[segment].scale_offset + row * scale_bytes(segments[segment].bits);
  }
  Rows rows(int segment, int64_t first, int count) const {
    const Segment& s = segments[segment];
    return {s.bits, ScaleMode(s.scale_mode), codes(segment, first), scale(segment, first), count};
  }
  void write(int segment, int64_t row, const float* x) const {
    quantize_row(x, segments[segment].bits, dim, codes(segment, row), scale(segment, row));
  }
  // Move a window row into a tier: a copy where the widths agree, else requantized.
  void demote(int64_t window_row, int tier, int slot) const {
    const int to = kFirstTier + tier, bits = segments[kWindow].bits;
    const uint8_t* from = codes(kWindow, window_row);
    if (segments[to].bits == bits) {
      std::memcpy(codes(to, slot), from, size_t(row_bytes(bits, dim)));
      std::memcpy(scale(to, slot), scale(kWindow, window_row), size_t(scale_bytes(bits)));
      return;
    }
    float x[kMaxHeadDim];
    dequantize_row(from, scale(kWindow, window_row), bits, ScaleMode(segments[kWindow].scale_mode), dim, x);
    write(to, slot, x);
  }
};

// Unnormalised softmax sums of n queries over some rows.
struct Part {
  std::vector<float> scores;            // [n, rows], exponentials once attended
  std::vector<float> peak, total, acc;  // [n], [n], [n, D]
  int64_t stride = 0;

  void resize(int n, int64_t rows, int dim) {
    stride = rows;
    scores.resize(size_t(n) * size_t(rows));
    peak.resize(size_t(n));
    total.resize(size_t(n));
    acc.assign(size_t(n) * size_t(dim), 0.0f);
  }
};

struct Block {
  int head, tier, first, count;
  Part part;
};

class Step {
 public:
  explicit Step(const AttendArgs& a)
      : a_(a),
        group_(a.n_heads / a.n_kv_heads),
        queries_(a.count * group_),
        window_(a.layout[kWindow].rows),
        kernels_(row_kernels()),
        heads_(size_t(a.n_kv_heads)) {
    const int32_t* used = plan_row(a.count - 1) + 2;
    for (int h = 0; h < a.n_kv_heads; ++h) {
      heads_[size_t(h)].first_block = blocks_.size();
      for (int tier = 0; tier < a.n_tiers; ++tier) {
        for (int first = 0; first < used[tier]; first += kBlockRows) {
          blocks_.push_back({h, tier, first, std::min(kBlockRows, used[tier] - first), {}});
        }
      }
      heads_[size_t(h)].end_block = blocks_.size();
    }
  }

  void run(const ParallelFor& parallel) {
    int64_t rows = window_;
    for (size_t b = heads_[0].first_block; b < heads_[0].end_block; ++b) rows += blocks_[b].count;
    const bool small = int64_t(a_.n_heads) * a_.count * rows < kMinParallelDots;
    const ParallelFor& loop = small ? serial_ : parallel;
    const ParallelFor& head_loop = a_.count == 1 ? serial_ : loop;  // a single token is too little work a head
    head_loop(a_.n_kv_heads, [this](int h) { append(h); });
    loop(int(blocks_.size()), [this](int b) { attend_block(blocks_[size_t(b)]); });
    head_loop(a_.n_kv_heads, [this](int h) { finish(h); });
    if (a_.lag >= 0) record_attention();
  }

 private:
  struct Head {
    std::vector<float> queries;      // [n, D]
    std::vector<float> k_columns;    // [D, D], the K transform transposed
    Part recent;                     // scores [n, 1 + R]: the sink, then the window by slot
    std::vector<int64_t> attention;  // [R, kAttentionSums]
    size_t first_block = 0, end_block = 0;
  };

  const int32_t* plan_row(int i) const { return a_.plan + int64_t(i) * (2 + a_.n_tiers); }

  Unit unit(int head, int side) const {
    return {a_.layout + int64_t(2 * head + side) * (kFirstTier + a_.n_tiers), a_.cache, a_.head_dim};
  }

  const float* projection(int i, int head_slot) const {
    return a_.qkv + (int64_t(i) * (a_.n_heads + 2 * a_.n_kv_heads) + head_slot) * a_.head_dim;
  }

  void rotate(const float* x, int64_t position, float* out) const {
    const int half = a_.head_dim / 2;
    const float *c = a_.cos + position * half, *s = a_.sin + position * half;
    for (int j = 0; j < half; ++j) {
      out[j] = x[j] * c[j] - x[half + j] * s[j];
      out[half + j] = x[half + j] * c[j] + x[j] * s[j];
    }
  }

  // K (side 0) or V (side 1) of chunk token i as it is stored: K after RoPE, without its mean, transformed.
  void stored_form(int head, int side, int i, float* x) const {
    const int dim = a_.head_dim;
    const float* mean = (side == 0 ? a_.k_mean : a_.v_mean) + int64_t(head) * dim;
    const float* row = projection(i, a_.n_heads + side * a_.n_kv_heads + head);
    if (side == 1) {
      for (int j = 0; j < dim; ++j) x[j] = row[j] - mean[j];
      hadamard(x, dim);
      return;
    }
    float rotated[kMaxHeadDim];
    rotate(row, a_.p + i, rotated);
    for (int j = 0; j < dim; ++j) rotated[j] = rotated[j] - mean[j];
    transform(rotated, heads_[size_t(head)].k_columns.data(), dim, x);
  }

  void transform_queries(int h) {
    Head& head = heads_[size_t(h)];
    const int dim = a_.head_dim;
    const int64_t matrix = int64_t(h) * dim * dim;
    std::vector<float> q_columns(size_t(dim) * dim);
    transpose(a_.q_transform + matrix, dim, q_columns.data());
    head.k_columns.resize(size_t(dim) * dim);
    transpose(a_.k_transform + matrix, dim, head.k_columns.data());
    head.queries.resize(size_t(queries_) * dim);
    const float scale = float(1.0 / std::sqrt(double(dim)));
    for (int q = 0; q < queries_; ++q) {
      float rotated[kMaxHeadDim], *x = &head.queries[size_t(q) * dim];
      rotate(projection(q / group_, h * group_ + q % group_), a_.p + q / group_, rotated);
      transform(rotated, q_columns.data(), dim, x);
      for (int j = 0; j < dim; ++j) x[j] *= scale;
    }
  }

  // Token by token, because each token's row overwrites that of the one that leaves.
  void append(int h) {
    transform_queries(h);
    heads_[size_t(h)].recent.resize(queries_, 1 + window_, a_.head_dim);
    float x[kMaxHeadDim];
    for (int i = 0; i < a_.count; ++i) {
      const int64_t position = a_.p + i;
      const int32_t* row = plan_row(i);
      for (int side = 0; side < 2; ++side) {
        const Unit u = unit(h, side);
        if (row[0] >= 0) u.demote(position % window_, row[0], row[1]);
        stored_form(h, side, i, x);
        position == 0 ? u.write(kSink, 0, x) : u.write(kWindow, position % window_, x);
      }
      attend_recent(h, i);
    }
  }

  void attend_recent(int h, int i) {
    Head& head = heads_[size_t(h)];
    const Unit k = unit(h, 0), v = unit(h, 1);
    const int dim = a_.head_dim, at = i * group_;
    const int64_t position = a_.p + i;
    const int filled = int(std::min<int64_t>(position + 1, window_));  // slots 0 .. filled - 1 hold rows
    const int64_t stride = head.recent.stride;
    float* scores = &head.recent.scores[size_t(at * stride)];
    const float* queries = &head.queries[size_t(at) * dim];
    kernels_.score(k.rows(kSink, 0, 1), queries, group_, dim, scores, stride);
    kernels_.score(k.rows(kWindow, 0, filled), queries, group_, dim, scores + 1, stride);
    for (int g = 0; g < group_; ++g) {
      float* row = scores + g * stride;
      if (position < window_) row[1] = kHidden;  // slot 0 is position 0, the sink, until position R takes it
      std::fill(row + 1 + filled, row + stride, kHidden);
      const size_t q = size_t(at + g);
      head.recent.total[q] = kernels_.softmax_part(row, stride, &head.recent.peak[q]);
    }
    float* acc = &head.recent.acc[size_t(at) * dim];
    kernels_.accumulate(v.rows(kSink, 0, 1), scores, stride, group_, dim, acc);
    kernels_.accumulate(v.rows(kWindow, 0, filled), scores + 1, stride, group_, dim, acc);
  }

  void attend_block(Block& block) const {
    const Head& head = heads_[size_t(block.head)];
    const int dim = a_.head_dim, segment = kFirstTier + block.tier, n = block.count;
    const Rows keys = unit(block.head, 0).rows(segment, block.first, n);
    const Rows values = unit(block.head, 1).rows(segment, block.first, n);
    Part& part = block.part;
    part.resize(queries_, n, dim);
    kernels_.score(keys, head.queries.data(), queries_, dim, part.scores.data(), n);
    for (int q = 0; q < queries_; ++q) {
      const int visible = std::clamp(plan_row(q / group_)[2 + block.tier] - block.first, 0, n);
      float* row = &part.scores[size_t(q) * size_t(n)];
      std::fill(row + visible, row + n, kHidden);
      part.total[size_t(q)] = kernels_.softmax_part(row, n, &part.peak[size_t(q)]);
    }
    kernels_.accumulate(values, part.scores.data(), n, queries_, dim, part.acc.data());
  }

  // Join the parts of every query, then back from the Hadamard domain.
  void finish(int h) {
    Head& head = heads_[size_t(h)];
    const int dim = a_.head_dim;
    if (a_.lag >= 0) head.attention.assign(size_t(window_ * kAttentionSums), 0);
    for (int q = 0; q < queries_; ++q) {
      const size_t at = size_t(q);
      float peak = head.recent.peak[at], total = 0.0f;
      for (size_t b = head.first_block; b < head.end_block; ++b) peak = std::max(peak, blocks_[b].part.peak[at]);
      float* out = a_.out + (int64_t(q / group_) * a_.n_heads + h * group_ + q % group_) * dim;
      std::fill_n(out, dim, 0.0f);
      const auto join = [&](const Part& part) {
        const float f = fast_exp(part.peak[at] - peak);
        total += f * part.total[at];
        const float* acc = &part.acc[at * size_t(dim)];
        for (int j = 0; j < dim; ++j) out[j] += f * acc[j];
      };
      join(head.recent);
      for (size_t b = head.first_block; b < head.end_block; ++b) join(blocks_[b].part);
      for (int j = 0; j < dim; ++j) out[j] /= total;
      hadamard(out, dim);
      for (int j = 0; j < dim; ++j) out[j] += a_.v_mean[int64_t(h) * dim + j];
      if (a_.lag >= 0) sum_attention(head, q, fast_exp(head.recent.peak[at] - peak) / total);
    }
  }

  // What query q pays to itself and to the `lag` tokens before it. f turns its exponentials into probabilities.
  void sum_attention(Head& head, int q, float f) const {
    const int64_t position = a_.p + q / group_;
    const float* exponentials = &head.recent.scores[size_t(q * head.recent.stride)];
    for (int64_t age = 0; age <= a_.lag && age < position; ++age) {
      const int64_t slot = (position - age) % window_;
      const float probability = exponentials[1 + slot] * f;
      int64_t* sums = &head.attention[size_t(slot * kAttentionSums)];
      sums[age == 0 ? kOwn : kReceived] += std::llrint(double(probability) / kAttentionUnit);
      if (age == 0) sums[kOwnSquared] += std::llrint(double(probability * probability) / kAttentionUnit);
    }
  }

  void record_attention() const {
    for (const Head& head : heads_) {
      for (size_t i = 0; i < head.attention.size(); ++i) a_.attention[i] += head.attention[i];
    }
  }

  const AttendArgs& a_;
  const int group_, queries_;
  const int64_t window_;
  const RowKernels& kernels_;
  std::vector<Head> heads_;
  std::vector<Block> blocks_;
  const ParallelFor serial_ = serial_for;
};

}  // namespace

void attend(const AttendArgs& args, const ParallelFor& parallel) { Step(args).run(parallel); }

}  // namespace adakv
