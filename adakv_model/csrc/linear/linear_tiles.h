// Loops over blocks of rows and tiles of tokens, for linear_<instruction set>.cpp. Static: a copy for every set.
#pragma once

#include <type_traits>

#include "linear/linear.h"

namespace adakv {

// tile(integral constant n, t, the tile's groups) for all tiles, of at most `limit` tokens.
template <int limit, typename Tile>
static inline void for_tiles(const Tokens& tokens, int groups, const Tile& tile) {
  int t = 0;
  const auto all_of = [&](auto size) {
    for (; t + size <= tokens.count; t += size) {
      tile(size, t, reinterpret_cast<const TileGroup<size>*>(tokens.tiles + int64_t(t) * groups * kTokenBytes));
    }
  };
  if constexpr (limit >= 8) all_of(std::integral_constant<int, 8>());
  if constexpr (limit >= 4) all_of(std::integral_constant<int, 4>());
  if constexpr (limit >= 2) all_of(std::integral_constant<int, 2>());
  all_of(std::integral_constant<int, 1>());
}

// block(index, r, rows) for the blocks of `rows` rows from `first` on, `step` rows at a time; the last may have fewer.
template <int step, typename Block>
static inline void for_blocks(int64_t first, int64_t rows, const Block& block) {
  for (int64_t r = 0; r < rows; r += step) block((first + r) / kBlockRows, r, rows - r < step ? int(rows - r) : step);
}

}  // namespace adakv
