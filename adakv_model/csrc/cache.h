// Core of the adakv operators on plain pointers: no ExecuTorch types, so tests and other runtimes can call it.
// Semantics, shapes and names follow adakv_model/reference.py.
#pragma once

#include <cstdint>

#include "parallel.h"
#include "quantizer.h"

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

StepError check_step(int64_t input_pos, int64_t tokens, int64_t length, int64_t context, int64_t window);

void depart(const int64_t* tokens, int count, int64_t p, const float* token_log_frequency, int32_t* history,
            float* observed, int64_t* attention, int window, int64_t n_attentions, int64_t lag, float* features);

// Returns false if every tier is full.
bool assign(const float* logits, int count, int64_t p, const int32_t* capacities, int n_tiers, int32_t* progress,
            uint8_t* tiers, int64_t window, int32_t* plan);

void observe(const float* logits, const int64_t* tokens, int count, int64_t p, int64_t vocab, float* observed,
             int window, float* last_logits, float* surprisal, const ParallelFor& parallel);

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
  int64_t window, departure;
  int64_t lag;  // -1: attention is not observed
};

// Bytes of scratch that these arguments need.
int64_t attend_workspace(const AttendArgs& args);

void attend(const AttendArgs& args, const ParallelFor& parallel);

// Tokens 1 .. left(x) - 1 have left the window once position x is appended (reference.py).
inline int64_t left(int64_t x, int64_t window, int64_t departure) {
  const int64_t end = x / departure * departure - window + 1;
  return x < 0 || end < 1 ? 1 : end;
}

}  // namespace adakv
