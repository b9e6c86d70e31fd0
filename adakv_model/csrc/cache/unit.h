// The packed rows of one unit, read and written by slot.
#pragma once

#include <cstring>

#include "cache/attend_kernels.h"
#include "cache/cache.h"

namespace adakv {

// The packed rows of one unit: one (kv head, K or V) of the layer's buffer.
struct Unit {
  const Segment* segments;
  uint8_t* cache;
  int dim;
  Side side;

  uint8_t* scale(int segment, int64_t row) const {
    return cache + segments[segment].scale_offset + row * scale_bytes(segments[segment].bits);
  }
  // Rows `first` .., first being the start of a block.
  Rows rows(int segment, int64_t first, int count) const {
    const Segment& s = segments[segment];
    const uint8_t* codes = cache + s.codes_offset + first * row_bytes(s.bits, dim);
    return {s.bits, ScaleMode(s.scale_mode), dim, codes, scale(segment, first), count};
  }
  void write(int segment, int64_t row, const float* x) const {
    uint16_t codes[kMaxHeadDim];
    quantize_row(x, segments[segment].bits, dim, codes, scale(segment, row));
    store(segment, row, codes);
  }
  void store(int segment, int64_t row, const uint16_t* codes) const {
    store_codes(cache + segments[segment].codes_offset, segments[segment].bits, dim, segment_side(segment), row, codes);
  }
  // Move a window row into a tier: its codes where the widths agree, else requantized.
  void demote(int64_t window_row, int tier, int slot) const {
    const int to = kFirstTier + tier, bits = segments[kWindow].bits;
    uint16_t codes[kMaxHeadDim];
    load_codes(cache + segments[kWindow].codes_offset, bits, dim, side, window_row, codes);
    if (segments[to].bits == bits) {
      store(to, slot, codes);
      std::memcpy(scale(to, slot), scale(kWindow, window_row), size_t(scale_bytes(bits)));
      return;
    }
    float x[kMaxHeadDim];
    dequantize_row(codes, scale(kWindow, window_row), bits, ScaleMode(segments[kWindow].scale_mode), dim, x);
    write(to, slot, x);
  }

 private:
  // The sink is one plain row on either side.
  Side segment_side(int segment) const { return segment == kSink ? kValue : side; }
};

}  // namespace adakv
