// SPDX-License-Identifier: LGPL-2.1-or-later
//
// How a qcow2 image of given parameters divides its disk and its file: clusters, subclusters, L2
// tables and refcount blocks, and what one entry of each says. Pure: bytes to meaning, no I/O; any
// thread. Source: QEMU's docs/interop/qcow2, "Cluster mapping", "Extended L2 Entries", "Host
// cluster management". All numbers in an image are big endian.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>

#include "base/units.h"

namespace vbdkit::drivers::qcow2 {

inline constexpr uint64_t kCopiedFlag = uint64_t{1} << 63;
inline constexpr uint64_t kCompressedFlag = uint64_t{1} << 62;
inline constexpr uint64_t kZeroFlag = 1;  // not with extended L2 entries
inline constexpr uint64_t kOffsetMask = 0x00fffffffffffe00;
inline constexpr uint64_t kL1Reserved = 0x7f000000000001ff;
inline constexpr uint64_t kL2Reserved = 0x3f000000000001fe;
inline constexpr uint64_t kRefcountTableReserved = 0x1ff;

// Metadata is read and written in pieces of this size, or of a cluster where that is smaller.
inline constexpr uint32_t kMaxSlice = 4096;  // bytes

template <typename T>
T load_be(const void* at) {
  T v;
  memcpy(&v, at, sizeof v);
  if constexpr (sizeof v == 2) return static_cast<T>(__builtin_bswap16(v));
  if constexpr (sizeof v == 4) return static_cast<T>(__builtin_bswap32(v));
  if constexpr (sizeof v == 8) return static_cast<T>(__builtin_bswap64(v));
  return v;
}

template <typename T>
void store_be(void* at, T v) {
  v = load_be<T>(&v);
  memcpy(at, &v, sizeof v);
}

// One entry of an L2 table. A unit is what is allocated by itself: one of the cluster's 32
// subclusters, or the cluster where there are none. Bit n of a mask stands for unit n.
struct ClusterState {
  enum class Kind : uint8_t {
    kPlain,       // the masks say it; `host` may be 0
    kCompressed,  // `host` and `compressed_length`
    kInvalid,     // contradicts the format
  };
  Kind kind = Kind::kPlain;
  bool copied = false;             // the host cluster belongs to nothing else
  uint32_t compressed_length = 0;  // bytes, an upper bound
  uint64_t host = 0;               // file offset of the host cluster (of the data if compressed)
  uint32_t allocated = 0;          // units whose data is in the host cluster
  uint32_t zero = 0;               // units that read as zeroes; disjoint from `allocated`
};

struct Geometry {
  uint32_t cluster_bits = 16;
  uint32_t refcount_order = 4;
  bool extended = false;

  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits; }
  uint64_t in_cluster(uint64_t offset) const { return offset & (cluster_size() - 1); }
  uint64_t clusters_for(uint64_t bytes) const {
    return (bytes >> cluster_bits) + (in_cluster(bytes) != 0);
  }

  uint32_t units() const { return extended ? 32 : 1; }
  uint32_t unit_bits() const { return extended ? cluster_bits - 5 : cluster_bits; }
  uint64_t unit_size() const { return uint64_t{1} << unit_bits(); }
  uint32_t all_units() const { return extended ? ~uint32_t{0} : 1; }
  // The units that [from, to) inside a cluster touches.
  uint32_t units_of(uint64_t from, uint64_t to) const {
    const uint64_t first = from >> unit_bits();
    const uint64_t last = (to - 1) >> unit_bits();
    return static_cast<uint32_t>((uint64_t{2} << last) - (uint64_t{1} << first));
  }

  uint32_t entry_size() const { return extended ? 16 : 8; }
  uint32_t l2_entries() const { return static_cast<uint32_t>(cluster_size() / entry_size()); }
  uint64_t l2_span() const { return uint64_t{l2_entries()} << cluster_bits; }
  uint64_t l1_entries_for(uint64_t size) const {
    return size / l2_span() + (size % l2_span() != 0);
  }

  uint32_t slice_size() const {
    return cluster_size() < kMaxSlice ? static_cast<uint32_t>(cluster_size()) : kMaxSlice;
  }
  uint32_t slice_entries() const { return slice_size() / entry_size(); }
  uint64_t slice_span() const { return uint64_t{slice_entries()} << cluster_bits; }

  uint32_t refcount_bits() const { return 1u << refcount_order; }
  uint64_t max_refcount() const { return ~uint64_t{0} >> (64 - refcount_bits()); }
  uint64_t refcounts_per_block() const { return cluster_size() * 8 / refcount_bits(); }
  uint64_t refcounts_per_slice() const { return uint64_t{slice_size()} * 8 / refcount_bits(); }

  // The largest host offset that a refcount table of the greatest size allowed can count.
  uint64_t max_refcount_table_clusters() const { return (uint64_t{8} << 20) >> cluster_bits; }

  ClusterState decode(uint64_t descriptor, uint64_t bitmap) const;
  ClusterState decode_at(const uint8_t* entry) const {
    return decode(load_be<uint64_t>(entry), extended ? load_be<uint64_t>(entry + 8) : 0);
  }
  // Only of kPlain states.
  void encode_at(uint8_t* entry, const ClusterState& state) const;

  uint64_t get_refcount(const uint8_t* block, uint64_t index) const;
  void set_refcount(uint8_t* block, uint64_t index, uint64_t value) const;
};

}  // namespace vbdkit::drivers::qcow2
