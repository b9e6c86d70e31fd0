// Products of a block of 8 rows with up to four tokens in 256-bit vectors. Included in the namespace of an x86 set,
// after its struct Dots:
//   Ints: exact sums of products of a token and a block's rows; codes hold four channels of 8 rows, x four activations.
//   first(codes, x, start): start + products, or products only. add: and more products, of 8 quads of 4-bit codes.
//   finish(ints, start): int32 sums with start. add_two: int32 ints and two quads of 6-bit codes.
//   Nibbles: the same for a single token and bytes of two codes: start_nibbles, add_nibbles, finish_nibbles.
//   merge(both, pairs): codes with the low 4 bits of `both` and bits 4 and 5 of `pairs`, whose bits 6 and 7 are zero.

constexpr int kYmmTile = 4;

inline __m256i broadcast(const int8_t* four) {
  int32_t bytes;
  std::memcpy(&bytes, four, 4);
  return _mm256_set1_epi32(bytes);
}

inline __m256i load_codes(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

inline __m128i load_8(const uint8_t* bytes) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)); }

// Asks for the lines that a single token needs some way ahead: what only the hardware foresees arrives too late.
template <int size>
inline void fetch_ahead(const uint8_t* bytes) {
  constexpr int kAhead = 2048;  // bytes
  for (int line = 0; line < size; line += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(bytes + kAhead + line), _MM_HINT_T0);
  }
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
  const __m256i even_pairs = _mm256_set1_epi8(0x33);
  __m256 sums[n];
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  for (int g = 0; g < groups; ++g, bytes += kTableBlockBytes, halves += kBlockRows, ++tile) {
    if (n == 1) fetch_ahead<kTableBlockBytes>(bytes);
    typename Dots::Ints ints[n];
    __m256i pairs[4][2];  // bits 4 and 5 of quads 2 f + k, with other bits in their low 4
    for (int k = 0; k < 2; ++k) {
      const __m256i run = load_codes(bytes + 128 + 32 * k);
      pairs[2][k] = _mm256_and_si256(run, even_pairs);
      pairs[3][k] = _mm256_and_si256(_mm256_srli_epi16(run, 2), even_pairs);
      pairs[0][k] = _mm256_slli_epi16(pairs[2][k], 4);
      pairs[1][k] = _mm256_slli_epi16(pairs[3][k], 4);
    }
    for (int q = 0; q < kQuads; q += 2) {
      __m256i codes[2];
      for (int k = 0; k < 2; ++k) {
        const __m256i both = load_codes(bytes + 32 * ((q + k) % 4));
        codes[k] = Dots::merge(q < 4 ? both : _mm256_srli_epi16(both, 4), pairs[q / 2][k]);
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

// A single token. Blocks one after the other are one stream: two at a time, which would share the loads of activations,
// are slower.
inline void int4_token_ymm(const Int4Matrix& matrix, int64_t block, const TileGroup<1>* tile, const float* residual,
                           float* out) {
  const int groups = matrix.groups();
  const uint8_t* bytes = matrix.blocks + block * groups * kInt4BlockBytes;
  __m256 sums = _mm256_setzero_ps(), shifts = _mm256_setzero_ps();
  for (int g = 0; g < groups; ++g, bytes += kInt4BlockBytes, ++tile) {
    const int8_t* x = tile->codes[0];
    fetch_ahead<kInt4BlockBytes>(bytes);
    typename Dots::Nibbles ints = Dots::start_nibbles(tile->starts[0]);
    for (int q = 0; q < 4; ++q) {
      Dots::add_nibbles(ints, load_codes(bytes + 32 * q), broadcast(x + 4 * q), broadcast(x + 4 * q + 16));
    }
    const __m256 steps = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_8(bytes + 128)));
    const __m256 offsets = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_8(bytes + 136)));
    const __m256 products = _mm256_cvtepi32_ps(Dots::finish_nibbles(ints, tile->starts[0]));
    sums = _mm256_fmadd_ps(_mm256_mul_ps(products, _mm256_set1_ps(tile->scales[0])), steps, sums);
    shifts = _mm256_fmadd_ps(offsets, _mm256_set1_ps(tile->totals[0]), shifts);
  }
  const float* units = matrix.units + block * 2 * kBlockRows;
  const __m256 start = residual == nullptr ? _mm256_setzero_ps() : _mm256_loadu_ps(residual);
  const __m256 shifted = _mm256_fmadd_ps(shifts, _mm256_loadu_ps(units + kBlockRows), start);
  _mm256_storeu_ps(out, _mm256_fmadd_ps(sums, _mm256_loadu_ps(units), shifted));
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
      const float* added = residual == nullptr ? nullptr : residual + to;
      if constexpr (size == 1) {
        int4_token_ymm(matrix, block, tile, added, out + to);
      } else {
        int4_tile_ymm<size>(matrix, block, tile, added, out + to, stride);
      }
    });
  });
}
