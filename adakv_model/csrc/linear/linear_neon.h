// Products of a block of 8 rows with up to four tokens in 128-bit vectors. Included in the namespace of an arm64 set,
// after its struct Dots, which multiplies a quad's codes of rows 0..3 and 4..7 with the four int8 activations in a lane
// of x:
//   Ints: exact sums of products of one token. start(): those of nothing.
//   add<lane>(ints, codes, x): of 4-bit codes, at most 8 quads from start() on, of 6-bit codes at most 4.
//   finish(ints, start): int32 sums and `start`.

constexpr int kNeonTile = 4;

// A number for each of 8 rows.
struct Ints8 {
  int32x4_t rows[2];
};
struct Floats8 {
  float32x4_t rows[2];
};

inline uint8x16_t nibble_low(uint8x16_t both) { return vandq_u8(both, vdupq_n_u8(0x0f)); }
inline uint8x16_t nibble_high(uint8x16_t both) { return vshrq_n_u8(both, 4); }

// Bits 4 and 5 of the codes of quads 2 f + k out of run k of bit pairs.
template <int f>
inline uint8x16_t pair_of(uint8x16_t run) {
  const uint8x16_t pair = vdupq_n_u8(0x30);
  if constexpr (f == 0) return vandq_u8(vshlq_n_u8(run, 4), pair);
  if constexpr (f == 1) return vandq_u8(vshlq_n_u8(run, 2), pair);
  if constexpr (f == 2) return vandq_u8(run, pair);
  return vandq_u8(vshrq_n_u8(run, 2), pair);
}

inline Floats8 widen_halves(const uint16_t* from) {
  const float16x8_t all = vreinterpretq_f16_u16(vld1q_u16(from));
  return {{vcvt_f32_f16(vget_low_f16(all)), vcvt_f32_f16(vget_high_f16(all))}};
}
inline Floats8 widen_unsigned(const uint8_t* from) {
  const uint16x8_t all = vmovl_u8(vld1_u8(from));
  return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(all))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(all)))}};
}
inline Floats8 widen_signed(const uint8_t* from) {
  const int16x8_t all = vmovl_s8(vreinterpret_s8_u8(vld1_u8(from)));
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(all))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(all)))}};
}

// sums += products * scale * steps.
inline void add_scaled(const Ints8& products, float scale, const Floats8& steps, Floats8& sums) {
  for (int h = 0; h < 2; ++h) {
    sums.rows[h] = vfmaq_f32(sums.rows[h], vmulq_n_f32(vcvtq_f32_s32(products.rows[h]), scale), steps.rows[h]);
  }
}

inline void store_rows(float* out, const Floats8& sums, int rows) {
  float values[kBlockRows];
  float* to = rows == kBlockRows ? out : values;
  vst1q_f32(to, sums.rows[0]);
  vst1q_f32(to + 4, sums.rows[1]);
  if (rows < kBlockRows) std::memcpy(out, values, size_t(rows) * sizeof(float));
}

// shifts[t] += offsets * total of the token. In a loop of its own if there are several: registers are short otherwise.
template <int n>
inline void add_shifts(const uint8_t* offsets, const TileGroup<n>& tile, Floats8* shifts) {
  const Floats8 widened = widen_signed(offsets);
  for (int t = 0; t < n; ++t) {
    for (int h = 0; h < 2; ++h) shifts[t].rows[h] = vfmaq_n_f32(shifts[t].rows[h], widened.rows[h], tile.totals[t]);
  }
}

// out = sums * step units + (shifts * offset units + residual).
template <int n>
inline void store_int4(const Int4Matrix& matrix, int64_t block, const Floats8* sums, const Floats8* shifts,
                       const float* residual, float* out, int64_t stride) {
  const float* units = matrix.units + block * 2 * kBlockRows;
  for (int t = 0; t < n; ++t) {
    for (int h = 0; h < 2; ++h) {
      const int64_t at = t * stride + 4 * h;
      const float32x4_t start = residual == nullptr ? vdupq_n_f32(0.0f) : vld1q_f32(residual + at);
      const float32x4_t shifted = vfmaq_f32(start, shifts[t].rows[h], vld1q_f32(units + kBlockRows + 4 * h));
      vst1q_f32(out + at, vfmaq_f32(shifted, sums[t].rows[h], vld1q_f32(units + 4 * h)));
    }
  }
}

// Both quads of run i of 4-bit codes, for all tokens.
template <int i, int n>
inline void add_run(const uint8_t* bytes, const TileGroup<n>& tile, typename Dots::Ints* ints) {
  const uint8x16_t both[2] = {vld1q_u8(bytes + 32 * i), vld1q_u8(bytes + 32 * i + 16)};
  const int8x16_t low[2] = {vreinterpretq_s8_u8(nibble_low(both[0])), vreinterpretq_s8_u8(nibble_low(both[1]))};
  const int8x16_t high[2] = {vreinterpretq_s8_u8(nibble_high(both[0])), vreinterpretq_s8_u8(nibble_high(both[1]))};
  for (int t = 0; t < n; ++t) Dots::template add<i>(ints[t], low, vld1q_s8(tile.codes[t]));
  for (int t = 0; t < n; ++t) Dots::template add<i>(ints[t], high, vld1q_s8(tile.codes[t] + 16));
}

template <int n>
inline void int4_tile_neon(const Int4Matrix& matrix, int64_t block, const TileGroup<n>* tile, const float* residual,
                           float* out, int64_t stride) {
  const int groups = matrix.groups();
  const uint8_t* bytes = matrix.blocks + block * groups * kInt4BlockBytes;
  Floats8 sums[n] = {}, shifts[n] = {};
  for (int g = 0; g < groups; ++g) {
    const uint8_t* group = bytes + g * kInt4BlockBytes;
    typename Dots::Ints ints[n];
    for (int t = 0; t < n; ++t) ints[t] = Dots::start();
    add_run<0>(group, tile[g], ints);
    add_run<1>(group, tile[g], ints);
    add_run<2>(group, tile[g], ints);
    add_run<3>(group, tile[g], ints);
    const Floats8 steps = widen_unsigned(group + 128);
    for (int t = 0; t < n; ++t) {
      add_scaled(Dots::template finish<Ints8>(ints[t], tile[g].starts[t]), tile[g].scales[t], steps, sums[t]);
    }
    if (n == 1) add_shifts<n>(group + 136, tile[g], shifts);
  }
  if (n > 1) {
    for (int g = 0; g < groups; ++g) add_shifts<n>(bytes + g * kInt4BlockBytes + 136, tile[g], shifts);
  }
  store_int4<n>(matrix, block, sums, shifts, residual, out, stride);
}

// Quad q of 6-bit codes, for all tokens.
template <int q, int n>
inline void add_quad(const uint8_t* bytes, const TileGroup<n>& tile, typename Dots::Ints* ints) {
  int8x16_t codes[2];
  for (int h = 0; h < 2; ++h) {
    const uint8x16_t both = vld1q_u8(bytes + 32 * (q % 4) + 16 * h);
    const uint8x16_t pair = pair_of<q / 2>(vld1q_u8(bytes + 128 + 32 * (q % 2) + 16 * h));
    codes[h] = vreinterpretq_s8_u8(vorrq_u8(q < 4 ? nibble_low(both) : nibble_high(both), pair));
  }
  for (int t = 0; t < n; ++t) Dots::template add<q % 4>(ints[t], codes, vld1q_s8(tile.codes[t] + q / 4 * 16));
}

template <int n>
inline void table_tile_neon(const Table& table, int64_t block, const TileGroup<n>* tile, int rows, float* out,
                            int64_t stride) {
  const int groups = table.groups();
  const uint8_t* bytes = table.codes + block * groups * kTableBlockBytes;
  const uint16_t* halves = table.scales + block * groups * kBlockRows;
  Floats8 sums[n] = {};
  for (int g = 0; g < groups; ++g, bytes += kTableBlockBytes, halves += kBlockRows, ++tile) {
    typename Dots::Ints ints[n];
    Ints8 low[n];
    for (int t = 0; t < n; ++t) ints[t] = Dots::start();
    add_quad<0>(bytes, *tile, ints);
    add_quad<1>(bytes, *tile, ints);
    add_quad<2>(bytes, *tile, ints);
    add_quad<3>(bytes, *tile, ints);
    for (int t = 0; t < n; ++t) {
      low[t] = Dots::template finish<Ints8>(ints[t], tile->starts[t]);
      ints[t] = Dots::start();
    }
    add_quad<4>(bytes, *tile, ints);
    add_quad<5>(bytes, *tile, ints);
    add_quad<6>(bytes, *tile, ints);
    add_quad<7>(bytes, *tile, ints);
    const Floats8 scales = widen_halves(halves);
    for (int t = 0; t < n; ++t) {
      const Ints8 high = Dots::template finish<Ints8>(ints[t], 0);
      const Ints8 all = {{vaddq_s32(low[t].rows[0], high.rows[0]), vaddq_s32(low[t].rows[1], high.rows[1])}};
      add_scaled(all, tile->scales[t], scales, sums[t]);
    }
  }
  for (int t = 0; t < n; ++t) store_rows(out + t * stride, sums[t], rows);
}

inline void table_neon(const Table& table, int64_t first, int64_t rows, const Tokens& tokens, float* out,
                       int64_t stride) {
  for_blocks<kBlockRows>(first, rows, [&](int64_t block, int64_t r, int n) {
    for_tiles<kNeonTile>(tokens, table.groups(), [&](auto size, int t, const auto* tile) {
      table_tile_neon<size>(table, block, tile, n, out + t * stride + r, stride);
    });
  });
}

inline void int4_neon(const Int4Matrix& matrix, int64_t first, int64_t rows, const Tokens& tokens,
                      const float* residual, float* out, int64_t stride) {
  for_blocks<kBlockRows>(first, rows, [&](int64_t block, int64_t r, int) {
    for_tiles<kNeonTile>(tokens, matrix.groups(), [&](auto size, int t, const auto* tile) {
      const int64_t to = t * stride + r;
      int4_tile_neon<size>(matrix, block, tile, residual == nullptr ? nullptr : residual + to, out + to, stride);
    });
  });
}
