// Append a chunk, demote the rows that leave the window, attend on the packed rows.
//
// A query's softmax is a sum of parts, joined in order: the window ring with the sink, then every 512 rows of every
// tier. Parts are anchored to the stored rows, never to the chunk, and rows that a query may not see add exact zeros;
// so a query's result is the same to the last bit however the text is cut into chunks and however many threads run. One
// token is split over its parts, a chunk over its queries.
#include "cache/arena.h"
#include "cache/attend_kernels.h"
#include "cache/cache.h"
#include "cache/unit.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "fast_exp.h"

namespace adakv {

namespace {

constexpr int kRecorded = 16;  // positions whose attention is recorded together
constexpr float kHidden = -std::numeric_limits<float>::infinity();

// Tokens of a chunk between two departures. The workspace serves one of these at a time.
class Step {
 public:
  Step(const AttendArgs& a, int64_t start, int count, uint8_t* workspace)
      : a_(a),
        start_(start),
        count_(count),
        group_(a.n_heads / a.n_kv_heads),
        queries_(count * group_),
        ring_(a.layout[kWindow].rows),
        stride_(aligned(ring_ + 1)),
        whole_(count == 1 && group_ <= kMaxQueries),
        kernels_(attend_kernels()) {
    Arena arena{workspace};
    const int64_t all = int64_t(a.n_kv_heads) * queries_, dim = a.head_dim;
    values_ = arena.take<float>(all * dim);
    codes_ = arena.take<int8_t>(all * dim);
    scales_ = arena.take<float>(all * kMaxBands);
    sums_ = arena.take<int32_t>(all * kMaxBands);
    recent_ = arena.take<float>(all * stride_);
    recent_peaks_ = arena.take<float>(all);
    factors_ = arena.take<float>(all);
    // Whatever the count: a chunk may leave a single token between two departures.
    partials_ =
        arena.take<float>(group_ <= kMaxQueries ? a.n_kv_heads * (1 + max_parts()) * group_ * partial_size() : 0);
    needed_ = arena.used;
    if (workspace != nullptr) find_used();
  }

  int64_t needed() const { return needed_; }

  void run(const ParallelFor& parallel) const {
    const int tiles = (queries_ + kMaxQueries - 1) / kMaxQueries, pieces = 2 + tiles;
    const Loop prepare{a_.n_kv_heads * pieces, [this, pieces](int i) {
                         const int h = i / pieces, piece = i % pieces;
                         piece < 2 ? append(h, Side(piece)) : prepare_queries(h, (piece - 2) * kMaxQueries);
                       }};
    const int seen = a_.lag < 0 ? 0 : int(start_ + count_ - oldest_recorded());
    const Loop record{(seen + kRecorded - 1) / kRecorded, [this](int i) { record_attention(i * kRecorded); }};
    if (whole_) {
      const int parts = 1 + n_parts();
      parallel.run(
          {prepare,
           {a_.n_kv_heads * parts, [this, parts](int i) { attend_part(i / parts, 0, group_, i % parts, partial(i)); }},
           {a_.n_heads, [this, parts](int i) { finish_whole(i / group_, i % group_, parts); }},
           record});
    } else {
      parallel.run({prepare,
                    {a_.n_kv_heads * tiles, [this, tiles](int i) { attend_tile(i / tiles, i % tiles * kMaxQueries); }},
                    record});
    }
  }

 private:
  // Unnormalised softmax sums of n queries over some rows: peak [n], total [n], acc [n, D].
  struct Partial {
    float *peak, *total, *acc;
  };

  int64_t partial_size() const { return 2 + a_.head_dim; }

  Partial partial(int i) const {
    float* at = partials_ + int64_t(i) * group_ * partial_size();
    return {at, at + group_, at + 2 * group_};
  }

  int64_t max_parts() const {
    int64_t parts = 0;
    for (int tier = 0; tier < a_.n_tiers; ++tier) {
      parts += (a_.layout[kFirstTier + tier].rows + kPartRows - 1) / kPartRows;
    }
    return parts;
  }

  const int32_t* plan_row(int64_t i) const { return a_.plan + i * (2 + a_.n_tiers); }

  // Which tokens leave as this part of the chunk begins, and how many rows of each tier its queries see.
  void find_used() {
    const int64_t first = a_.leaving.left(a_.p - 1);
    first_leaving_ = a_.leaving.left(start_ - 1) - first;
    end_leaving_ = a_.leaving.left(start_) - first;
    const int32_t* row = plan_row(std::max<int64_t>(end_leaving_ - 1, 0));
    std::copy_n(row + 2, a_.n_tiers, used_);
    if (end_leaving_ == 0 && row[0] >= 0) --used_[row[0]];  // the row counts a token that leaves later in the chunk
  }

  // Parts of the tiers, in order; returns how many rows part i has, and where.
  int n_parts() const {
    int parts = 0;
    for (int tier = 0; tier < a_.n_tiers; ++tier) parts += (used_[tier] + kPartRows - 1) / kPartRows;
    return parts;
  }
  int find_part(int i, int* tier, int* first) const {
    for (*tier = 0;; ++*tier) {
      const int parts = (used_[*tier] + kPartRows - 1) / kPartRows;
      if (i < parts) break;
      i -= parts;
    }
    *first = i * kPartRows;
    return std::min(kPartRows, used_[*tier] - *first);
  }

  Unit unit(int head, Side side) const {
    return {a_.layout + int64_t(2 * head + side) * (kFirstTier + a_.n_tiers), a_.cache, a_.head_dim, side};
  }

  const float* projection(int i, int head_slot) const {
    return a_.qkv + ((start_ - a_.p + i) * (a_.n_heads + 2 * a_.n_kv_heads) + head_slot) * a_.head_dim;
  }

  void rotate(const float* x, int64_t position, float* out) const {
    const int half = a_.head_dim / 2;
    const float *c = a_.cos + position * half, *s = a_.sin + position * half;
    for (int j = 0; j < half; ++j) {
      out[j] = x[j] * c[j] - x[half + j] * s[j];
      out[half + j] = x[half + j] * c[j] + x[j] * s[j];
    }
  }

  // K or V of chunk token i as it is stored: K after RoPE, without its mean, transformed.
  void stored_form(int head, Side side, int i, float* x) const {
    const int dim = a_.head_dim;
    const float* mean = (side == kKey ? a_.k_mean : a_.v_mean) + int64_t(head) * dim;
    const float* row = projection(i, a_.n_heads + side * a_.n_kv_heads + head);
    if (side == kValue) {
      for (int j = 0; j < dim; ++j) x[j] = row[j] - mean[j];
      hadamard(x, dim);
      return;
    }
    float rotated[kMaxHeadDim];
    rotate(row, start_ + i, rotated);
    for (int j = 0; j < dim; ++j) rotated[j] = rotated[j] - mean[j];
    kernels_.transform(rotated, a_.k_columns + int64_t(head) * dim * dim, dim, x);
  }

  // Demotes, because the new rows take the places of those that leave; then appends.
  void append(int h, Side side) const {
    const Unit u = unit(h, side);
    for (int64_t i = first_leaving_; i < end_leaving_; ++i) {
      const int64_t position = a_.leaving.left(a_.p - 1) + i;
      u.demote(position % ring_, plan_row(i)[0], plan_row(i)[1]);
    }
    float x[kMaxHeadDim];
    for (int i = 0; i < count_; ++i) {
      stored_form(h, side, i, x);
      start_ + i == 0 ? u.write(kSink, 0, x) : u.write(kWindow, (start_ + i) % ring_, x);
    }
  }

  void prepare_queries(int h, int first) const {
    const int dim = a_.head_dim;
    for (int q = first; q < std::min(queries_, first + kMaxQueries); ++q) {
      float rotated[kMaxHeadDim];
      const int64_t at = int64_t(h) * queries_ + q;
      rotate(projection(q / group_, h * group_ + q % group_), start_ + q / group_, rotated);
      kernels_.transform(rotated, a_.q_columns + int64_t(h) * dim * dim, dim, values_ + at * dim);
      kernels_.quantize_query(values_ + at * dim, dim, codes_ + at * dim, scales_ + at * kMaxBands,
                              sums_ + at * kMaxBands);
    }
  }

  Queries queries(int h, int first, int n) const {
    const int64_t at = int64_t(h) * queries_ + first;
    return {values_ + at * a_.head_dim, codes_ + at * a_.head_dim, scales_ + at * kMaxBands, sums_ + at * kMaxBands, n};
  }

  // Softmax sums of queries first .. first + n - 1 over part i: the ring with the sink, or rows of a tier.
  void attend_part(int h, int first, int n, int i, const Partial& out) const {
    if (i == 0) return attend_recent(h, first, n, out);
    int tier, row;
    const int count = find_part(i - 1, &tier, &row);
    float scores[kPartRows * kMaxQueries];
    const int64_t stride = (count + kBlockSlots - 1) / kBlockSlots * kBlockSlots;
    kernels_.score(unit(h, kKey).rows(kFirstTier + tier, row, count), queries(h, first, n), scores, stride);
    for (int q = 0; q < n; ++q) out.total[q] = kernels_.softmax_part(scores + q * stride, count, out.peak + q);
    kernels_.accumulate(unit(h, kValue).rows(kFirstTier + tier, row, count), scores, stride, n, out.acc);
  }

  // Score by ring slot, then the sink's. The exponentials stay for record_attention.
  void attend_recent(int h, int first, int n, const Partial& out) const {
    const int dim = a_.head_dim, ring = int(ring_);
    const int64_t at = int64_t(h) * queries_ + first;
    float* scores = recent_ + at * stride_;
    const Unit k = unit(h, kKey), v = unit(h, kValue);
    kernels_.score(k.rows(kWindow, 0, ring), queries(h, first, n), scores, stride_);
    float sink[kMaxHeadDim];
    read_sink(k, sink);
    for (int q = 0; q < n; ++q) {
      float* row = scores + q * stride_;
      hide_unseen(row, start_ + (first + q) / group_);
      const float* x = values_ + (at + q) * dim;
      float score = 0.0f;
      for (int c = 0; c < dim; ++c) score = score + x[c] * sink[c];
      row[ring] = score;
      out.total[q] = kernels_.softmax_part(row, ring + 1, out.peak + q);
      recent_peaks_[at + q] = out.peak[q];
    }
    kernels_.accumulate(v.rows(kWindow, 0, ring), scores, stride_, n, out.acc);
    read_sink(v, sink);
    for (int q = 0; q < n; ++q) kernels_.join(out.acc + q * dim, 1.0f, sink, scores[q * stride_ + ring], dim);
  }

  void read_sink(const Unit& u, float* x) const {
    uint16_t codes[kMaxHeadDim];
    load_codes(u.cache + u.segments[kSink].codes_offset, u.segments[kSink].bits, u.dim, kValue, 0, codes);
    dequantize_row(codes, u.scale(kSink, 0), u.segments[kSink].bits, kRms, u.dim, x);
  }

  // Ring slots that hold no row, the sink's, or one that a query at `position` may not see.
  void hide_unseen(float* row, int64_t position) const {
    const int64_t oldest = a_.leaving.left(start_);  // 1 or more: position 0 is the sink
    const int64_t seen = position - oldest + 1;
    if (seen <= 0) {
      std::fill_n(row, ring_, kHidden);
      return;
    }
    const int64_t begin = oldest % ring_, end = begin + seen;  // slots begin .. end - 1, around the ring
    std::fill(row + (end > ring_ ? end - ring_ : 0), row + begin, kHidden);
    if (end < ring_) std::fill(row + end, row + ring_, kHidden);
  }

  // Sums of one query so far, and those of another part after it.
  void join(float* peak, float* total, float* acc, float other_peak, float other_total, const float* other) const {
    const float highest = std::max(*peak, other_peak);
    const float keep = fast_exp(*peak - highest), take = fast_exp(other_peak - highest);
    *total = *total * keep + other_total * take;
    kernels_.join(acc, keep, other, take, a_.head_dim);
    *peak = highest;
  }

  // A query's output from its sums, back from the Hadamard domain.
  void finish(int h, int q, float peak, float total, float* acc) const {
    const int dim = a_.head_dim;
    const int64_t at = int64_t(h) * queries_ + q, token = start_ - a_.p + q / group_;
    float* out = a_.out + (token * a_.n_heads + h * group_ + q % group_) * dim;
    for (int j = 0; j < dim; ++j) out[j] = acc[j] / total;
    hadamard(out, dim);
    for (int j = 0; j < dim; ++j) out[j] += a_.v_mean[int64_t(h) * dim + j];
    factors_[at] = fast_exp(recent_peaks_[at] - peak) / total;
  }

  void finish_whole(int h, int q, int parts) const {
    const Partial sums = partial(h * parts);
    float* acc = sums.acc + int64_t(q) * a_.head_dim;
    for (int i = 1; i < parts; ++i) {
      const Partial other = partial(h * parts + i);
      join(sums.peak + q, sums.total + q, acc, other.peak[q], other.total[q], other.acc + int64_t(q) * a_.head_dim);
    }
    finish(h, q, sums.peak[q], sums.total[q], acc);
  }

  // All parts of up to kMaxQueries queries of a head.
  void attend_tile(int h, int first) const {
    const int n = std::min(kMaxQueries, queries_ - first), dim = a_.head_dim;
    float peaks[2][kMaxQueries], totals[2][kMaxQueries], accs[2][kMaxQueries * kMaxHeadDim];
    attend_part(h, first, n, 0, {peaks[0], totals[0], accs[0]});
    for (int i = 1; i <= n_parts(); ++i) {
      attend_part(h, first, n, i, {peaks[1], totals[1], accs[1]});
      for (int q = 0; q < n; ++q) {
        join(peaks[0] + q, totals[0] + q, accs[0] + q * dim, peaks[1][q], totals[1][q], accs[1] + q * dim);
      }
    }
    for (int q = 0; q < n; ++q) finish(h, first + q, peaks[0][q], totals[0][q], accs[0] + q * dim);
  }

  // The oldest position whose attention this step adds to: in the window, and `lag` or less before a query.
  int64_t oldest_recorded() const { return std::max(a_.leaving.left(start_), start_ - a_.lag); }

  // What positions first .. first + kRecorded - 1, from the oldest recorded on, get from themselves and from the `lag`
  // tokens after each.
  void record_attention(int first) const {
    const int64_t begin = oldest_recorded() + first, end = std::min(begin + kRecorded, start_ + count_);
    for (int64_t position = begin; position < end; ++position) {
      const int64_t slot = position % ring_;
      int64_t own = 0, own_squared = 0, received = 0;
      for (int h = 0; h < a_.n_kv_heads; ++h) {
        const int64_t last = std::min(position + a_.lag, start_ + count_ - 1);
        for (int64_t query = std::max(position, start_); query <= last; ++query) {
          for (int g = 0; g < group_; ++g) {
            const int64_t at = int64_t(h) * queries_ + (query - start_) * group_ + g;
            const float probability = recent_[at * stride_ + slot] * factors_[at];
            const int64_t units = std::llrint(double(probability) / kAttentionUnit);
            (query == position ? own : received) += units;
            if (query == position) own_squared += std::llrint(double(probability * probability) / kAttentionUnit);
          }
        }
      }
      int64_t* sums = a_.attention + slot * kAttentionSums;
      sums[kOwn] += own;
      sums[kOwnSquared] += own_squared;
      sums[kReceived] += received;
    }
  }

  const AttendArgs& a_;
  const int64_t start_;
  const int count_, group_, queries_;
  const int64_t ring_, stride_;
  const bool whole_;  // one token: split over the rows
  const AttendKernels& kernels_;
  float *values_, *scales_, *recent_, *recent_peaks_, *factors_, *partials_;
  int8_t* codes_;
  int32_t* sums_;
  int64_t needed_, first_leaving_ = 0, end_leaving_ = 0;
  int32_t used_[kMaxTiers] = {};
};

}  // namespace

int64_t attend_workspace(const AttendArgs& args) { return Step(args, args.p, args.count, nullptr).needed() + 64; }

void attend(const AttendArgs& args, const ParallelFor& parallel) {
  uint8_t* workspace = args.workspace + (64 - reinterpret_cast<uintptr_t>(args.workspace) % 64) % 64;
  for (int64_t start = args.p, end = args.p + args.count; start < end;) {
    const int64_t next = std::min(end, (start / args.leaving.departure + 1) * args.leaving.departure);
    Step(args, start, int(next - start), workspace).run(parallel);
    start = next;
  }
}

}  // namespace adakv
