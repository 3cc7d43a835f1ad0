// The XOR swizzles that TMA writes and wgmma reads (PTX 5.5.7), on byte addresses.
//
//   width 128: chunk c of row r lies at chunk c ^ (r & 7)           16-byte chunks; r = address / 128
//   width  64: chunk c of row r lies at chunk c ^ ((r >> 1) & 3)    r = address / 64
//   width  32: chunk c of row r lies at chunk c ^ ((r >> 2) & 1)    r = address / 32
//
// The hardware XORs ABSOLUTE shared-memory address bits 7..9. Applied to an offset it agrees only when the
// base is a multiple of repeat(width). Bits 0..3 and 7 and up never change; each function is its own inverse.
#pragma once

#include <cstdint>

#include "../numeric/host_device.h"

namespace lowbit::swizzle {

// width in bytes: 128, 64, 32, or anything else for none.
LOWBIT_HOST_DEVICE constexpr uint32_t apply(uint32_t address, int width) {
  return width == 128  ? address ^ ((address & 0x380u) >> 3)
         : width == 64 ? address ^ ((address & 0x180u) >> 3)
         : width == 32 ? address ^ ((address & 0x080u) >> 3)
                       : address;
}

// The pattern repeats after this many bytes; tiles start on it.
LOWBIT_HOST_DEVICE constexpr int repeat(int width) {
  return width == 128 ? 1024 : width == 64 ? 512 : width == 32 ? 256 : 16;
}

// Byte k of row r in a K-major tile of rows x width bytes.
LOWBIT_HOST_DEVICE constexpr uint32_t tile_offset(int r, int k, int width) {
  return apply(uint32_t(r * width + k), width);
}

static_assert(apply(0x380, 128) == 0x3f0 && apply(0x180, 64) == 0x1b0 && apply(0x080, 32) == 0x090);
static_assert(apply(apply(0x12345, 128), 128) == 0x12345);
static_assert(tile_offset(7, 0, 128) == 7 * 128 + 7 * 16 && tile_offset(8, 0, 128) == 1024);

}  // namespace lowbit::swizzle
