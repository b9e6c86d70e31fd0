// Append a chunk, demote the rows that leave the window, attend on the packed rows.
//
// Rows are never expanded beyond a tile: every query of a kv head's group reads the same unpacked tile. The
// rows of a head are split into parts so that few heads still fill the threads; parts depend only on the number
// of rows, so results do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cache.h"
#include "fast_exp.h"
#include "rows.h"

namespace adakv {

namespace {

constexpr int kRowsPerPart = 256, kMaxParts = 8;
constexpr int64_t kMinParallelDots = 4096;  // below this many query x row products threads cost more than they give

// The rows of one source that query position q may see are [from(q), to(q)).
struct Source {
  Rows k, v;
  int tier;       // >= 0: a prefix given by the plan; -1: the sink; -2: rows of consecutive recent positions
  int64_t first;  // position of the first row, for recent rows
};

int packed_bytes(const Segment& s, int dim) { return row_bytes(s.bits, dim); }

struct Unit {
  const Segment* segments;
  uint8_t* cache;
  int dim;

  uint8_t* codes(int segment, int64_t row) const {
    return cache + segments[segment].codes_offset + row * packed_bytes(segments[segment], dim);
  }
  uint16_t* scale(int segment, int64_t row) const {
    return reinterpret_cast<uint16_t*>(cache + segments[segment].scale_offset) + row;
  }
  Rows rows(int segment, int64_t first, int count) const {
    return {segments[segment].bits, codes(segment, first), scale(segment, first), count};
  }
  void write(int segment, int64_t row, const float* x) const {
    const Segment& s = segments[segment];
    quantize_row(x, s.bits, ScaleMode(s.scale_mode), dim, codes(segment, row), scale(segment, row));
  }
  void copy(int segment, int64_t row, const uint8_t* from_codes, const uint16_t* from_scale) const {
    std::memcpy(codes(segment, row), from_codes, size_t(packed_bytes(segments[segment], dim)));
    *scale(segment, row) = *from_scale;
  }
  void demote(int64_t window_row, int tier, int slot) const {
    const int to = kFirstTier + tier;
    const uint8_t* from_codes = codes(kWindow, window_row);
    const uint16_t* from_scale = scale(kWindow, window_row);
    if (segments[to].bits == segments[kWindow].bits) return copy(to, slot, from_codes, from_scale);
    float x[kMaxHeadDim];
    dequantize_row(from_codes, from_scale, segments[kWindow].bits, dim, x);
    write(to, slot, x);
  }
};

// The chunk's own rows in window format, until the ring may be overwritten.
struct FreshRows {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scales;
};

class Step {
 public:
  explicit Step(const AttendArgs& a)
      : a_(a),
        group_(a.n_heads / a.n_kv_heads),
        queries_(a.count * group_),
        window_(a.layout[kWindow].rows),
        old_first_(std::max<int64_t>(1, a.p - window_)),
        new_first_(std::max<int64_t>(1, a.p)),
        kernels_(row_kernels()) {
    const int32_t* last = a.plan + int64_t(a.count - 1) * (2 + a.n_tiers) + 2;
    tier_rows_ = 0;
    for (int k = 0; k < a.n_tiers; ++k) tier_rows_ += last[k];
    rows_ = 1 + tier_rows_ + (a.p + a.count - old_first_);
    parts_ = int(std::clamp<int64_t>(rows_ / kRowsPerPart, 1, kMaxParts));
    heads_.resize(size_t(a.n_kv_heads));
  }

  void run(const ParallelFor& parallel) {
    const bool small = int64_t(a_.n_heads) * a_.count * rows_ < kMinParallelDots;
    const ParallelFor& loop = small ? serial_loop_ : parallel;
    const ParallelFor& chunk_loop = a_.count == 1 ? serial_loop_ : loop;
    chunk_loop(a_.n_kv_heads, [this](int h) { prepare(h); });
    loop(a_.n_kv_heads * parts_, [this](int i) { attend_part(i / parts_, i % parts_); });
    chunk_loop(a_.n_kv_heads, [this](int h) { finish(h); });
    if (a_.lag >= 0) record_attention();
  }

 private:
  struct Head {
    std::vector<float> queries, sums;     // [Q, D], [Q]
    std::vector<float> scores;            // [Q, rows]
    std::vector<float> acc, peak, total;  // [parts, Q, D], [parts, Q], [parts, Q]
    std::vector<float> own, received;     // per recent row: sums over the group's queries
    std::vector<float> own_squared;
    FreshRows fresh[2];
    std::vector<Source> sources;
  };

  Unit unit(int head, int side) const {
    return {a_.layout + int64_t(2 * head + side) * (kFirstTier + a_.n_tiers), a_.cache, a_.head_dim};
  }

  void rotate(const float* x, int64_t position, float* out) const {
    const int half = a_.head_dim / 2;
    const float *c = a_.cos + position * half, *s = a_.sin + position * half;
    for (int j = 0; j < half; ++j) {
      out[j] = x[j] * c[j] - x[half + j] * s[j];
      out[half + j] = x[half + j] * c[j] + x[j] * s[j];
    }
  }

  const float* token_row(int i, int head_slot) const {
    return a_.qkv + (int64_t(i) * (a_.n_heads + 2 * a_.n_kv_heads) + head_slot) * a_.head_dim;
  }

  // Rotated, centred K (side 0) or V (side 1) of the chunk's token i.
  void stored_form(int head, int side, int i, float* x) const {
    const int dim = a_.head_dim;
    const float* mean = (side == 0 ? a_.k_mean : a_.v_mean) + int64_t(head) * dim;
    const float* row = token_row(i, a_.n_heads + side * a_.n_kv_heads + head);
    if (side == 0) {
      rotate(row, a_.p + i, x);
    } else {
      std::copy_n(row, dim, x);
    }
    for (int j = 0; j < dim; ++j) x[j] = x[j] - mean[j];
    hadamard(x, dim);
  }

  void append(int head, int side) {
    const Unit u = unit(head, side);
    FreshRows& fresh = heads_[size_t(head)].fresh[side];
    const int width = packed_bytes(u.segments[kWindow], a_.head_dim);
    fresh.codes.resize(size_t(a_.count) * width);
    fresh.scales.resize(size_t(a_.count));
    float x[kMaxHeadDim];
    for (int i = 0; i < a_.count; ++i) {
      const int32_t* row = a_.plan + int64_t(i) * (2 + a_.n_tiers);
      if (row[0] >= 0) u.demote((a_.p + i) % window_, row[0], row[1]);
      stored_form(head, side, i, x);
      const int64_t position = a_.p + i;
      if (position == 0) {
        u.write(kSink, 0, x);
      } else {
        const size_t at = size_t(position - new_first_);
        const Segment& w = u.segments[kWindow];
        quantize_row(x, w.bits, ScaleMode(w.scale_mode), a_.head_dim, &fresh.codes[at * width], &fresh.scales[at]);
      }
    }
  }

  void add_recent(Head& head, const Unit& k, const Unit& v, int64_t first, int64_t end) {
    while (first < end) {  // the ring gives at most two runs
      const int64_t row = first % window_;
      const int n = int(std::min<int64_t>(end - first, window_ - row));
      head.sources.push_back({k.rows(kWindow, row, n), v.rows(kWindow, row, n), -2, first});
      first += n;
    }
  }

  void collect_sources(int h) {
    Head& head = heads_[size_t(h)];
    const Unit k = unit(h, 0), v = unit(h, 1);
    const int32_t* last = a_.plan + int64_t(a_.count - 1) * (2 + a_.n_tiers) + 2;
    head.sources.clear();
    head.sources.push_back({k.rows(kSink, 0, 1), v.rows(kSink, 0, 1), -1, 0});
    for (int t = 0; t < a_.n_tiers; ++t) {
      head.sources.push_back({k.rows(kFirstTier + t, 0, last[t]), v.rows(kFirstTier + t, 0, last[t]), t, 0});
    }
    add_recent(head, k, v, old_first_, a_.p);
    const int n = int(a_.p + a_.count - new_first_);
    const auto fresh_rows = [&](int side) -> Rows {
      return {a_.layout[kWindow].bits, head.fresh[side].codes.data(), head.fresh[side].scales.data(), n};
    };
    head.sources.push_back({fresh_rows(0), fresh_rows(1), -2, new_first_});
  }

  void prepare(int h) {
    Head& head = heads_[size_t(h)];
    const int dim = a_.head_dim;
    append(h, 0);
    append(h, 1);
    collect_sources(h);
    head.queries.resize(size_t(queries_) * dim);
    head.sums.assign(size_t(queries_), 0.0f);
    const float scale = float(1.0 / std::sqrt(double(dim)));
    for (int q = 0; q < queries_; ++q) {
      float* x = &head.queries[size_t(q) * dim];
      rotate(token_row(q / group_, h * group_ + q % group_), a_.p + q / group_, x);
      hadamard(x, dim);
      for (int j = 0; j < dim; ++j) head.sums[size_t(q)] += x[j] *= scale;
    }
    head.scores.resize(size_t(queries_) * size_t(rows_));
    head.acc.assign(size_t(parts_) * queries_ * dim, 0.0f);
    head.peak.resize(size_t(parts_) * queries_);
    head.total.resize(size_t(parts_) * queries_);
  }

  // Visible rows of a source for chunk query i, clipped to its count.
  void visible(const Source& s, int i, int64_t* from, int64_t* to) const {
    const int64_t q = a_.p + i, n = s.k.count;
    *from = 0;
    *to = n;
    if (s.tier >= 0) *to = a_.plan[int64_t(i) * (2 + a_.n_tiers) + 2 + s.tier];
    if (s.tier == -2) {
      *from = std::clamp<int64_t>(q - window_ + 1 - s.first, 0, n);
      *to = std::clamp<int64_t>(q + 1 - s.first, *from, n);
    }
  }

  void mask(const Source& s, int64_t skip, int64_t count, float* scores) const {
    constexpr float kHidden = -std::numeric_limits<float>::infinity();
    for (int q = 0; q < queries_; ++q) {
      int64_t from, to;
      visible(s, q / group_, &from, &to);
      from = std::clamp<int64_t>(from - skip, 0, count);
      to = std::clamp<int64_t>(to - skip, from, count);
      float* row = scores + q * rows_;
      std::fill_n(row, from, kHidden);
      std::fill_n(row + to, count - to, kHidden);
    }
  }

  static Rows slice(const Rows& rows, int64_t skip, int64_t count, int dim) {
    return {rows.bits, rows.codes + skip * row_bytes(rows.bits, dim), rows.scales + skip, int(count)};
  }

  // Calls f(source, rows to skip in it, rows to use, first row's index over all sources) within the part.
  template <typename F>
  void for_sources(const Head& head, int part, F&& f) const {
    const int64_t begin = rows_ * part / parts_, end = rows_ * (part + 1) / parts_;
    int64_t start = 0;
    for (const Source& s : head.sources) {
      const int64_t from = std::max(begin, start), to = std::min(end, start + s.k.count);
      if (from < to) f(s, from - start, to - from, from);
      start += s.k.count;
    }
  }

  void attend_part(int h, int part) {
    Head& head = heads_[size_t(h)];
    const int dim = a_.head_dim;
    for_sources(head, part, [&](const Source& s, int64_t skip, int64_t n, int64_t at) {
      kernels_.score(slice(s.k, skip, n, dim), head.queries.data(), head.sums.data(), queries_, dim,
                     &head.scores[size_t(at)], rows_);
      mask(s, skip, n, &head.scores[size_t(at)]);
    });
    const int64_t begin = rows_ * part / parts_, end = rows_ * (part + 1) / parts_;
    for (int q = 0; q < queries_; ++q) {
      const size_t at = size_t(part) * queries_ + q;
      head.total[at] = kernels_.softmax_part(&head.scores[size_t(q) * rows_ + begin], end - begin, &head.peak[at]);
    }
    float* acc = &head.acc[size_t(part) * queries_ * dim];
    for_sources(head, part, [&](const Source& s, int64_t skip, int64_t n, int64_t at) {
      kernels_.accumulate(slice(s.v, skip, n, dim), &head.scores[size_t(at)], rows_, queries_, dim, acc);
    });
  }

  // Factor that turns part's exponentials of query q into probabilities.
  float factor(const Head& head, int part, int q) const {
    float peak = -std::numeric_limits<float>::infinity(), total = 0;
    for (int p = 0; p < parts_; ++p) peak = std::max(peak, head.peak[size_t(p) * queries_ + q]);
    for (int p = 0; p < parts_; ++p) {
      const size_t at = size_t(p) * queries_ + q;
      total += head.total[at] * fast_exp(head.peak[at] - peak);
    }
    return fast_exp(head.peak[size_t(part) * queries_ + q] - peak) / total;
  }

  void finish(int h) {
    Head& head = heads_[size_t(h)];
    const int dim = a_.head_dim;
    for (int q = 0; q < queries_; ++q) {
      float* out = a_.out + (int64_t(q / group_) * a_.n_heads + h * group_ + q % group_) * dim;
      std::fill_n(out, dim, 0.0f);
      for (int part = 0; part < parts_; ++part) {
        const float f = factor(head, part, q);
        const float* acc = &head.acc[(size_t(part) * queries_ + q) * dim];
        for (int j = 0; j < dim; ++j) out[j] += f * acc[j];
      }
      hadamard(out, dim);
      for (int j = 0; j < dim; ++j) out[j] += a_.v_mean[int64_t(h) * dim + j];
    }
    for (int side = 0; side < 2; ++side) store_window(h, side);
    if (a_.lag >= 0) sum_recent(head);
  }

  void store_window(int h, int side) const {
    const Unit u = unit(h, side);
    const FreshRows& fresh = heads_[size_t(h)].fresh[side];
    const size_t width = size_t(packed_bytes(u.segments[kWindow], a_.head_dim));
    for (int64_t position = new_first_; position < a_.p + a_.count; ++position) {
      const size_t at = size_t(position - new_first_);
      u.copy(kWindow, position % window_, &fresh.codes[at * width], &fresh.scales[at]);
    }
  }

  void sum_recent(Head& head) const {
    const int64_t first_row = 1 + tier_rows_, recent = rows_ - first_row;
    head.own.assign(size_t(recent), 0.0f);
    head.own_squared.assign(size_t(recent), 0.0f);
    head.received.assign(size_t(recent), 0.0f);
    for (int part = 0; part < parts_; ++part) {
      const int64_t begin = std::max(first_row, rows_ * part / parts_), end = rows_ * (part + 1) / parts_;
      if (begin >= end) continue;
      for (int q = 0; q < queries_; ++q) {
        const float f = factor(head, part, q);
        for (int64_t row = begin; row < end; ++row) {
          const size_t r = size_t(row - first_row);
          const int64_t age = a_.p + q / group_ - (old_first_ + int64_t(r));
          if (age < 0 || age > a_.lag) continue;
          const float probability = head.scores[size_t(q) * rows_ + row] * f;
          (age == 0 ? head.own[r] : head.received[r]) += probability;
          if (age == 0) head.own_squared[r] += probability * probability;
        }
      }
    }
  }

  void record_attention() const {
    for (const Head& head : heads_) {
      for (size_t r = 0; r < head.own.size(); ++r) {
        float* seen = a_.observed + ((old_first_ + int64_t(r)) % window_) * kObservations;
        seen[kOwn] += head.own[r];
        seen[kOwnSquared] += head.own_squared[r];
        seen[kReceived] += head.received[r];
      }
    }
  }

  const AttendArgs& a_;
  const int group_, queries_;
  const int64_t window_, old_first_, new_first_;
  const RowKernels& kernels_;
  int64_t tier_rows_, rows_;
  int parts_;
  std::vector<Head> heads_;
  const ParallelFor serial_loop_ = serial_for;
};

}  // namespace

void attend(const AttendArgs& args, const ParallelFor& parallel) { Step(args).run(parallel); }

}  // namespace adakv
