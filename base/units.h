// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Quantities that must not be mixed up. Bytes and Sectors are distinct types; a sector is 512 bytes
// here and on the blkif ring (xen/io/blkif.h: "sector" fields are always in 512-byte units).
#pragma once

#include <compare>
#include <cstdint>

namespace vbdkit {

template <typename Tag>
struct Quantity {
  uint64_t v = 0;

  friend constexpr auto operator<=>(const Quantity&, const Quantity&) = default;
  friend constexpr Quantity operator+(Quantity a, Quantity b) { return {a.v + b.v}; }
  friend constexpr Quantity operator-(Quantity a, Quantity b) { return {a.v - b.v}; }
  constexpr Quantity& operator+=(Quantity b) {
    v += b.v;
    return *this;
  }
  constexpr Quantity& operator-=(Quantity b) {
    v -= b.v;
    return *this;
  }
};

using Bytes = Quantity<struct BytesTag>;
using Sectors = Quantity<struct SectorsTag>;

inline constexpr uint64_t kSectorSize = 512;

constexpr Bytes to_bytes(Sectors s) { return {s.v * kSectorSize}; }
// Rounds down: the tail of a device that is no whole sector is not addressable through blkif.
constexpr Sectors to_sectors(Bytes b) { return {b.v / kSectorSize}; }

constexpr uint64_t align_down(uint64_t v, uint64_t a) { return v - v % a; }
constexpr uint64_t align_up(uint64_t v, uint64_t a) { return align_down(v + a - 1, a); }

// True where [off, off+len) lies inside [0, limit), without overflow.
constexpr bool range_inside(uint64_t off, uint64_t len, uint64_t limit) {
  return off <= limit && len <= limit - off;
}

}  // namespace vbdkit
