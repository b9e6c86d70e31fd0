// Products of a block of 8 rows with up to four tokens in 256-bit vectors. Included in the namespace of an x86 set,
// after its struct Dots:
//   Ints: exact sums of products of a tile's token, one for each row; codes hold four channels of 8 rows, x four int8.
//   first(codes, x, start): start + products, or products only. add: and more products, of 8 quads of 4-bit codes.
//   finish(ints, start): int32 sums with start. add_two: int32 ints and two quads of 6-bit codes.

constexpr int kYmmTile = 4;
constexpr int kAhead = 2048;  // bytes: memory is asked for so early, as the hardware looks no further than a page

inline __m256i broadcast(const int8_t* four) {
  int32_t bytes;
  std::memcpy(&bytes, four, 4);
  return _mm256_set1_epi32(bytes);
}

inline __m256i load_codes(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

inline __m128i load_8(const uint8_t* bytes) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)); }

template <int bytes>
inline void fetch_ahead(const uint8_t* from) {
  for (int line = 0; line < bytes; line += 64)
    _mm_prefetch(reinterpret_cast<const char*>(from + kAhead + line), _MM_HINT_T0);
}

inline void store_rows(float* out, __m256 sum, int rows) {
  if (rows == kBlockRows) return _mm256_storeu_ps(out, sum);
  float values[kBlockRows];
  _mm256_storeu_ps(values, sum);
  std::memcpy(out, values, size_t(rows) * sizeof(float));
}

template <int n>
inline void table_tile_ymm(const Table& table, int64_t block, const TileGroup<n>* tile, int rows, float* out,
                           int64_t stride) {
  const int groups = table.groups();
  const uint8_t* bytes = table.codes + block * groups * kTableBlockBytes;
  const uint16_t* halves = table.scales + block * groups * kBlockRows;
  const __m256i nibble = _mm256_set1_epi8(0x0f), pair = _mm256_set1_epi8(0x30);
  __m256 sums[n];
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  for (int g = 0; g < groups; ++g, bytes += kTableBlockBytes, halves += kBlockRows, ++tile) {
    if (n == 1) fetch_ahead<kTableBlockBytes>(bytes);
    typename Dots::Ints ints[n];
    const __m256i high[2] = {load_codes(bytes + 128), load_codes(bytes + 160)};
    for (int q = 0; q < kQuads; q += 2) {
      const __m256i shifted[2][4] = {
          {_mm256_slli_epi16(high[0], 4), _mm256_slli_epi16(high[0], 2), high[0], _mm256_srli_epi16(high[0], 2)},
          {_mm256_slli_epi16(high[1], 4), _mm256_slli_epi16(high[1], 2), high[1], _mm256_srli_epi16(high[1], 2)}};
      __m256i codes[2];
      for (int k = 0; k < 2; ++k) {
        const __m256i both = load_codes(bytes + 32 * ((q + k) % 4));
        codes[k] = _mm256_or_si256(_mm256_and_si256(q < 4 ? both : _mm256_srli_epi16(both, 4), nibble),
                                   _mm256_and_si256(shifted[k][q / 2], pair));
      }
      for (int t = 0; t < n; ++t) {
        if (q == 0) ints[t] = _mm256_set1_epi32(tile->starts[t]);
        ints[t] =
            Dots::add_two(ints[t], codes, broadcast(tile->codes[t] + 4 * q), broadcast(tile->codes[t] + 4 * q + 4));
      }
    }
    const __m256 scales = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
    for (int t = 0; t < n; ++t) {
      const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(ints[t]), _mm256_set1_ps(tile->scales[t]));
      sums[t] = _mm256_fmadd_ps(scaled, scales, sums[t]);
    }
  }
  for (int t = 0; t < n; ++t) store_rows(out + t * stride, sums[t], rows);
}

template <int n>
inline void int4_tile_ymm(const Int4Matrix& matrix, int64_t block, const TileGroup<n>* tile, const float* residual,
                          float* out, int64_t stride) {
  const int groups = matrix.groups();
  const uint8_t* bytes = matrix.blocks + block * groups * kInt4BlockBytes;
  const float* units = matrix.units + block * 2 * kBlockRows;
  const __m256i nibble = _mm256_set1_epi8(0x0f);
  __m256 sums[n], shifts[n];
  for (int t = 0; t < n; ++t) sums[t] = shifts[t] = _mm256_setzero_ps();
  for (int g = 0; g < groups; ++g, bytes += kInt4BlockBytes, ++tile) {
    if (n == 1) fetch_ahead<kInt4BlockBytes>(bytes);
    typename Dots::Ints ints[n];
    for (int q = 0; q < 4; ++q) {
      const __m256i both = load_codes(bytes + 32 * q);
      const __m256i low = _mm256_and_si256(both, nibble), high = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
      for (int t = 0; t < n; ++t) {
        const __m256i x = broadcast(tile->codes[t] + 4 * q);
        ints[t] = q == 0 ? Dots::first(low, x, tile->starts[t]) : Dots::add(ints[t], low, x);
      }
      for (int t = 0; t < n; ++t) ints[t] = Dots::add(ints[t], high, broadcast(tile->codes[t] + 4 * q + 16));
    }
    const __m256 steps = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_8(bytes + 128)));
    const __m256 offsets = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_8(bytes + 136)));
    for (int t = 0; t < n; ++t) {
      const __m256i products = Dots::finish(ints[t], tile->starts[t]);
      const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(products), _mm256_set1_ps(tile->scales[t]));
      sums[t] = _mm256_fmadd_ps(scaled, steps, sums[t]);
      shifts[t] = _mm256_fmadd_ps(offsets, _mm256_set1_ps(tile->totals[t]), shifts[t]);
    }
  }
  const __m256 step_units = _mm256_loadu_ps(units), offset_units = _mm256_loadu_ps(units + kBlockRows);
  for (int t = 0; t < n; ++t) {
    const __m256 start = residual == nullptr ? _mm256_setzero_ps() : _mm256_loadu_ps(residual + t * stride);
    const __m256 shifted = _mm256_fmadd_ps(shifts[t], offset_units, start);
    _mm256_storeu_ps(out + t * stride, _mm256_fmadd_ps(sums[t], step_units, shifted));
  }
}

inline void table_ymm(const Table& table, int64_t first, int64_t rows, const Tokens& tokens, float* out,
                      int64_t stride) {
  for_blocks<kBlockRows>(first, rows, [&](int64_t block, int64_t r, int n) {
    for_tiles<kYmmTile>(tokens, table.groups(), [&](auto size, int t, const auto* tile) {
      table_tile_ymm<size>(table, block, tile, n, out + t * stride + r, stride);
    });
  });
}

inline void int4_ymm(const Int4Matrix& matrix, int64_t first, int64_t rows, const Tokens& tokens, const float* residual,
                     float* out, int64_t stride) {
  for_blocks<kBlockRows>(first, rows, [&](int64_t block, int64_t r, int) {
    for_tiles<kYmmTile>(tokens, matrix.groups(), [&](auto size, int t, const auto* tile) {
      const int64_t to = t * stride + r;
      int4_tile_ymm<size>(matrix, block, tile, residual == nullptr ? nullptr : residual + to, out + to, stride);
    });
  });
}
