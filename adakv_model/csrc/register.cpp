// ExecuTorch kernels adakv::{depart,assign,attend,observe}.out: argument checks around cache.h.
// Schemas: adakv_model/ops.py. A failed check leaves every buffer as it was. ExecuTorch's boxing allows one
// non-const tensor, `out`; arguments that the schema marks as mutated are const references all the same.
#include "register.h"

#include "cache/cache.h"

namespace adakv {
namespace {

int64_t position_of(const Tensor& input_pos) { return input_pos.const_data_ptr<int64_t>()[0]; }

// Logs the reason a chunk cannot be taken; true if it can.
bool step_ok(int64_t p, int64_t count, int64_t length, int64_t context, const Leaving& leaving) {
  if (leaving.window < 1 || leaving.departure < 1) {
    ET_LOG(Error, "adakv: window and departure must be at least 1");
    return false;
  }
  switch (check_step(p, count, length, context, leaving)) {
    case StepError::kOk: return true;
    case StepError::kChunkSize:
      ET_LOG(Error, "adakv: a chunk has 1 to %lld tokens, not %lld", (long long)leaving.largest_chunk(),
             (long long)count);
      return false;
    case StepError::kPosition:
      ET_LOG(Error, "adakv: input_pos is %lld: continue at %lld or reset at 0", (long long)p, (long long)length);
      return false;
    case StepError::kContextFull:
      ET_LOG(Error, "adakv: context full: position %lld is past the capacity of %lld", (long long)(p + count),
             (long long)context);
      return false;
  }
  return false;
}

Tensor& depart_out(KernelRuntimeContext& ctx, const Tensor& tokens, const Tensor& input_pos,
                   const Tensor& token_log_frequency, const Tensor& progress, const Tensor& history,
                   const Tensor& observed, const Tensor& attention, int64_t n_attentions, int64_t lag, int64_t window,
                   int64_t departure, Tensor& out) {
  const int64_t p = position_of(input_pos);
  const int count = int(tokens.numel()), ring = int(observed.size(0));
  const Leaving leaving{window, departure};
  ADAKV_CHECK(step_ok(p, count, progress.const_data_ptr<int32_t>()[0], history.numel(), leaving));
  ADAKV_CHECK(ring >= window + departure - 1);
  ADAKV_CHECK(tokens_ok(tokens, token_log_frequency.numel()));
  ADAKV_CHECK(observed.size(1) == kObservations && attention.numel() == ring * kAttentionSums);
  ADAKV_CHECK(resize<2>(out, {SizesType(leaving.rows(count)), kFeatures}));
  depart(tokens.const_data_ptr<int64_t>(), count, p, token_log_frequency.const_data_ptr<float>(),
         history.mutable_data_ptr<int32_t>(), observed.mutable_data_ptr<float>(), attention.mutable_data_ptr<int64_t>(),
         ring, n_attentions, lag, leaving, out.mutable_data_ptr<float>());
  return out;
}

Tensor& assign_out(KernelRuntimeContext& ctx, const Tensor& logits, const Tensor& input_pos, const Tensor& capacities,
                   const Tensor& progress, const Tensor& tiers, int64_t window, int64_t departure, Tensor& out) {
  const int64_t p = position_of(input_pos);
  const Leaving leaving{window, departure};
  const int rows = int(logits.size(0)), count = rows - int(departure) + 1, n_tiers = int(capacities.numel());
  int32_t* state = progress.mutable_data_ptr<int32_t>();
  ADAKV_CHECK(step_ok(p, count, state[0], tiers.numel(), leaving));
  ADAKV_CHECK(logits.numel() == int64_t(rows) * n_tiers && progress.numel() == 1 + n_tiers);
  ADAKV_CHECK(resize<2>(out, {SizesType(rows), SizesType(2 + n_tiers)}));
  ADAKV_CHECK(assign(logits.const_data_ptr<float>(), count, p, capacities.const_data_ptr<int32_t>(), n_tiers, state,
                     tiers.mutable_data_ptr<uint8_t>(), leaving, out.mutable_data_ptr<int32_t>()));
  return out;
}

bool dim_ok(int64_t dim) { return dim == 16 || dim == 32 || dim == 64 || dim == 128 || dim == 256; }

Tensor& attend_out(KernelRuntimeContext& ctx, const Tensor& qkv, const Tensor& cos, const Tensor& sin,
                   const Tensor& plan, const Tensor& input_pos, const Tensor& k_mean, const Tensor& v_mean,
                   const Tensor& k_columns, const Tensor& q_columns, const Tensor& layout, const Tensor& cache,
                   const Tensor& attention, const Tensor& workspace, int64_t lag, int64_t window, int64_t departure,
                   Tensor& out) {
  static_assert(sizeof(Segment) == 5 * sizeof(int32_t), "a layout row is five int32 columns");
  const int64_t kv_heads = k_mean.size(0), dim = k_mean.size(1), count = qkv.size(1);
  const int64_t heads = qkv.size(2) / dim - 2 * kv_heads, p = position_of(input_pos);
  ADAKV_CHECK(qkv.scalar_type() == ScalarType::Float && cache.scalar_type() == ScalarType::Byte);
  ADAKV_CHECK(dim_ok(dim) && heads > 0 && heads % kv_heads == 0);
  const Leaving leaving{window, departure};
  ADAKV_CHECK(plan.size(0) == leaving.rows(count));
  ADAKV_CHECK(k_columns.numel() == kv_heads * dim * dim && q_columns.numel() == k_columns.numel());
  ADAKV_CHECK(layout.size(0) == 2 * kv_heads && layout.size(1) == plan.size(1) && layout.size(2) == 5);
  ADAKV_CHECK(plan.size(1) - 2 <= kMaxTiers);
  ADAKV_CHECK(p >= 0 && p + count <= cos.size(0) && cos.size(1) == dim / 2);
  AttendArgs args;
  args.qkv = qkv.const_data_ptr<float>();
  args.cos = cos.const_data_ptr<float>();
  args.sin = sin.const_data_ptr<float>();
  args.plan = plan.const_data_ptr<int32_t>();
  args.k_mean = k_mean.const_data_ptr<float>();
  args.v_mean = v_mean.const_data_ptr<float>();
  args.k_columns = k_columns.const_data_ptr<float>();
  args.q_columns = q_columns.const_data_ptr<float>();
  args.layout = reinterpret_cast<const Segment*>(layout.const_data_ptr<int32_t>());
  args.cache = cache.mutable_data_ptr<uint8_t>();
  args.attention = attention.mutable_data_ptr<int64_t>();
  args.workspace = workspace.mutable_data_ptr<uint8_t>();
  args.p = p;
  args.count = int(count);
  args.n_heads = int(heads);
  args.n_kv_heads = int(kv_heads);
  args.head_dim = int(dim);
  args.n_tiers = int(plan.size(1)) - 2;
  args.leaving = leaving;
  args.lag = lag;
  ADAKV_CHECK(attention.numel() == args.layout[kWindow].rows * kAttentionSums);
  ADAKV_CHECK(workspace.numel() >= attend_workspace(args));
  ADAKV_CHECK(resize<3>(out, {1, SizesType(count), SizesType(heads * dim)}));
  args.out = out.mutable_data_ptr<float>();
  attend(args, pool());
  return out;
}

Tensor& observe_out(KernelRuntimeContext& ctx, const Tensor& logits, const Tensor& tokens, const Tensor& input_pos,
                    const Tensor& observed, const Tensor& last_logits, Tensor& out) {
  const int count = int(tokens.numel());
  const int64_t vocab = last_logits.numel();
  ADAKV_CHECK(logits.numel() == count * vocab && tokens_ok(tokens, vocab));
  ADAKV_CHECK(resize<1>(out, {SizesType(count)}));
  observe(logits.const_data_ptr<float>(), tokens.const_data_ptr<int64_t>(), count, position_of(input_pos), vocab,
          observed.mutable_data_ptr<float>(), int(observed.size(0)), last_logits.mutable_data_ptr<float>(),
          out.mutable_data_ptr<float>(), pool());
  return out;
}

}  // namespace

EXECUTORCH_LIBRARY(adakv, "depart.out", depart_out);
EXECUTORCH_LIBRARY(adakv, "assign.out", assign_out);
EXECUTORCH_LIBRARY(adakv, "attend.out", attend_out);
EXECUTORCH_LIBRARY(adakv, "observe.out", observe_out);

}  // namespace adakv
