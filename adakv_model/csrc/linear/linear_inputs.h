// What makes the tokens of a product int8, for linear_<instruction set>.cpp: included in that set's namespace, compiled
// with its options. Plain loops without contraction, so that they vectorise and give equal bits everywhere.

constexpr int kLanes = 8;  // partial results, so that loops vectorise

inline void normalize(const float* x, const float* weight, float eps, int channels, float* out) {
  float squares[kLanes] = {};
  for (int i = 0; i < channels; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) squares[j] += x[i + j] * x[i + j];
  }
  float sum = 0;
  for (float square : squares) sum += square;
  const float inverse = 1.0f / std::sqrt(sum / float(channels) + eps);
  for (int i = 0; i < channels; ++i) out[i] = x[i] * inverse * weight[i];
}

inline void swiglu(const float* gate, const float* up, int channels, float* out) {
  for (int i = 0; i < channels; ++i) {
    const float x = gate[i] < -80.0f ? -80.0f : gate[i];  // silu(-80) is -1e-33, its exponential finite
    out[i] = x / (1.0f + fast_exp(-x)) * up[i];
  }
}

inline void quantize(const float* x, int bias, const TokenGroup& to) {
  float peaks[kLanes] = {};
  for (int i = 0; i < kGroup; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      const float size = std::fabs(x[i + j]);
      peaks[j] = size > peaks[j] ? size : peaks[j];
    }
  }
  float peak = 0;
  for (float lane : peaks) peak = lane > peak ? lane : peak;
  const float scale = peak / 127.0f, inverse = peak > 0 ? 127.0f / peak : 0.0f;
  int32_t rounded[kGroup], sum = 0;
  int8_t codes[kGroup];
  for (int j = 0; j < kGroup; ++j) rounded[j] = int32_t(std::nearbyint(x[j] * inverse));
  for (int j = 0; j < kGroup; ++j) sum += rounded[j];
  for (int j = 0; j < kGroup; ++j) codes[j] = int8_t(rounded[j]);
  for (int j = 0; j < kGroup; j += to.run) std::memcpy(to.codes + j / to.run * to.next_run, codes + j, size_t(to.run));
  *to.scale = scale;
  *to.total = float(sum) * scale;
  *to.start = -bias * sum;
}
