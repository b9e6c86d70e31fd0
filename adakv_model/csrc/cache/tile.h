// Where the codes of packed rows lie: docs/cache-format.md, adakv_model/packing.py.
//
// Rows lie in blocks of 16 slots, and a block in tiles of 16 lanes x 4 codes: K tiles hold four channels of each of
// the 16 slots, V tiles four slots of each of 16 channels, so one product kernel serves both. Code n = 4 lane + element
// of a tile is packed like a run of 64: field f of byte j is code j + f * bytes; 3 bits are a plane of the two low
// bits, then one of the high bit. Rows of 16 bits are not tiled.
#pragma once

#include <cstdint>

#include "cache/quantizer.h"

namespace adakv {

constexpr int kBlockSlots = 16, kTileLanes = 16, kTileCodes = 64;

enum Side { kKey = 0, kValue = 1 };

static inline int tile_bytes(int width) { return kTileCodes * width / 8; }

// Bytes of one block of rows.
static inline int64_t block_bytes(int bits, int dim) { return int64_t(kBlockSlots) * row_bytes(bits, dim); }

template <int kBits>
static inline void set_field(uint8_t* plane, int n, unsigned code) {
  constexpr int kBytes = kTileCodes * kBits / 8;
  const int shift = kBits * (n / kBytes);
  uint8_t& byte = plane[n % kBytes];
  byte = uint8_t((byte & ~(((1u << kBits) - 1) << shift)) | code << shift);
}

template <int kBits>
static inline unsigned field(const uint8_t* plane, int n) {
  constexpr int kBytes = kTileCodes * kBits / 8;
  return (plane[n % kBytes] >> (kBits * (n / kBytes))) & ((1u << kBits) - 1);
}

// Code n of a tile.
static inline void set_code(uint8_t* tile, int width, int n, unsigned code) {
  switch (width) {
    case 2: return set_field<2>(tile, n, code);
    case 3: set_field<2>(tile, n, code & 3); return set_field<1>(tile + 16, n, code >> 2);
    case 4: return set_field<4>(tile, n, code);
    default: tile[n] = uint8_t(code);
  }
}

static inline unsigned code_at(const uint8_t* tile, int width, int n) {
  switch (width) {
    case 2: return field<2>(tile, n);
    case 3: return field<2>(tile, n) | field<1>(tile + 16, n) << 2;
    case 4: return field<4>(tile, n);
    default: return tile[n];
  }
}

// Calls f(tile, width, code's number in the tile, channel) for every channel of slot `slot` of a segment.
template <typename Byte, typename F>
static inline void for_codes(Byte* codes, int bits, int dim, Side side, int64_t slot, const F& f) {
  Byte* tile = codes + slot / kBlockSlots * block_bytes(bits, dim);
  const int in_block = int(slot % kBlockSlots);
  if (side == kKey) {
    const Runs runs = runs_of(bits, dim);
    for (int b = 0, c = 0; b < runs.count; ++b) {
      for (int end = c + runs.channels; c < end; c += 4, tile += tile_bytes(runs.width[b])) {
        for (int e = 0; e < 4; ++e) f(tile, runs.width[b], 4 * in_block + e, c + e);
      }
    }
  } else {
    const int bytes = tile_bytes(bits);
    tile += in_block / 4 * bytes;
    for (int c = 0; c < dim; c += kTileLanes, tile += 4 * bytes) {
      for (int lane = 0; lane < kTileLanes; ++lane) f(tile, bits, 4 * lane + in_block % 4, c + lane);
    }
  }
}

// Byte offset of channel c of a 16-bit row: K rows lie [block][channel][slot], V rows [slot][channel].
static inline int64_t offset_16(int dim, Side side, int64_t slot, int c) {
  if (side == kValue) return 2 * (slot * dim + c);
  return slot / kBlockSlots * block_bytes(16, dim) + 2 * (c * kBlockSlots + slot % kBlockSlots);
}

// Codes of one row into its slot, and back. codes: [dim].
static inline void store_codes(uint8_t* segment, int bits, int dim, Side side, int64_t slot, const uint16_t* codes) {
  if (bits == 16) {
    for (int c = 0; c < dim; ++c) std::memcpy(segment + offset_16(dim, side, slot, c), codes + c, 2);
    return;
  }
  for_codes(segment, bits, dim, side, slot,
            [&](uint8_t* tile, int width, int n, int c) { set_code(tile, width, n, codes[c]); });
}

static inline void load_codes(const uint8_t* segment, int bits, int dim, Side side, int64_t slot, uint16_t* codes) {
  if (bits == 16) {
    for (int c = 0; c < dim; ++c) std::memcpy(codes + c, segment + offset_16(dim, side, slot, c), 2);
    return;
  }
  for_codes(segment, bits, dim, side, slot,
            [&](const uint8_t* tile, int width, int n, int c) { codes[c] = uint16_t(code_at(tile, width, n)); });
}

}  // namespace adakv
