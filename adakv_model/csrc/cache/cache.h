// Core of the adakv operators on plain pointers: no ExecuTorch types, so tests and other runtimes can call it.
// Semantics, shapes and names follow adakv_model/reference.py.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cache/quantizer.h"
#include "parallel.h"

namespace adakv {

constexpr int kSink = 0, kWindow = 1, kFirstTier = 2;
constexpr uint8_t kInSink = 254, kInWindow = 255;

// Columns of the `observed` ring (OBSERVATIONS in plan.py).
enum Observation { kLogFrequency, kConfidence, kEntropy, kSurprisal, kRepeats, kObservations };

// Columns of the `attention` ring (ATTENTION_SUMS in plan.py), in units of kAttentionUnit.
enum AttentionSum { kOwn, kOwnSquared, kReceived, kAttentionSums };
constexpr double kAttentionUnit = 0x1p-24;

constexpr int kFeatures = 8;
constexpr int kMaxTiers = 8;

// One row of the layout table (LAYOUT_COLUMNS in plan.py).
struct Segment {
  int32_t bits, rows, codes_offset, scale_offset, scale_mode;  // bits: the widths of a row, as runs_of reads them
};

// Why a chunk cannot be taken; kOk if it can.
enum class StepError { kOk, kChunkSize, kPosition, kContextFull };

// When tokens leave the window (plan.py): as a position that is a multiple of `departure` is appended, all that are
// `window` behind or more. Position t has row t % ring of what is observed, and of the window segment.
struct Leaving {
  int64_t window, departure;

  // The oldest token still in the window once `position` is appended; -1 is the empty cache.
  int64_t left(int64_t position) const {
    return position < 0 ? 1 : std::max<int64_t>(1, position / departure * departure - window + 1);
  }
  int64_t largest_chunk() const { return departure > 1 ? departure : window; }
  // Rows of features and of the step plan: the most tokens that can leave during a chunk.
  int64_t rows(int64_t chunk) const { return chunk + departure - 1; }
};

StepError check_step(int64_t input_pos, int64_t tokens, int64_t length, int64_t context, const Leaving& leaving);

// features: [rows(count), kFeatures]; row j is of the token left(p - 1) + j, zeros past the last that leaves.
void depart(const int64_t* tokens, int count, int64_t p, const float* token_log_frequency, int32_t* history,
            float* observed, int64_t* attention, int ring, int64_t n_attentions, int64_t lag, const Leaving& leaving,
            float* features);

// logits: [rows(count), K]; plan: [rows(count), 2 + K], tier and slot of each leaving token, then the rows of every
// tier once it has left; past the last, -1, -1 and the final counts. Returns false if every tier is full.
bool assign(const float* logits, int count, int64_t p, const int32_t* capacities, int n_tiers, int32_t* progress,
            uint8_t* tiers, const Leaving& leaving, int32_t* plan);

void observe(const float* logits, const int64_t* tokens, int count, int64_t p, int64_t vocab, float* observed, int ring,
             float* last_logits, float* surprisal, const ParallelFor& parallel);

struct AttendArgs {
  const float* qkv;                    // [T, (H + 2 KV) D]
  const float *cos, *sin;              // [N, D / 2]
  const int32_t* plan;                 // [T + departure - 1, 2 + K]
  const float *k_mean, *v_mean;        // [KV, D]
  const float *k_columns, *q_columns;  // [KV, D, D], transposed transforms; the queries' includes 1 / sqrt(D)
  const Segment* layout;               // [2 KV, 2 + K]
  uint8_t* cache;
  int64_t* attention;  // [ring, kAttentionSums]
  uint8_t* workspace;  // attend_workspace() bytes; its content does not matter
  float* out;          // [T, H D]
  int64_t p;
  int count, n_heads, n_kv_heads, head_dim, n_tiers;
  Leaving leaving;
  int64_t lag;  // -1: attention is not observed
};

// Bytes of scratch that these arguments need.
int64_t attend_workspace(const AttendArgs& args);

void attend(const AttendArgs& args, const ParallelFor& parallel);

}  // namespace adakv
