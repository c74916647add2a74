// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The header of a qcow2 image, its extensions and its table of internal snapshots: bytes to
// meaning and back. Pure, no I/O, any thread; what it accepts is consistent in itself and inside
// the file, and every table size has been capped before anybody allocates by it.
// Source: QEMU's docs/interop/qcow2, "Header", "Header extensions", "Snapshots".
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "drivers/qcow2/geometry.h"

namespace vbdkit::drivers::qcow2 {

inline constexpr uint32_t kMagic = 0x514649fb;
inline constexpr uint32_t kV2HeaderLength = 72;
inline constexpr uint32_t kV3HeaderLength = 104;
inline constexpr uint32_t kMinClusterBits = 9;
inline constexpr uint32_t kMaxClusterBits = 21;
inline constexpr uint32_t kMinExtendedClusterBits = 14;

// Caps; the same as QEMU's, so that what one of us writes the other opens.
inline constexpr uint64_t kMaxL1Bytes = uint64_t{32} << 20;
inline constexpr uint64_t kMaxRefcountTableBytes = uint64_t{8} << 20;
inline constexpr uint32_t kMaxSnapshots = 65536;
inline constexpr uint64_t kMaxSnapshotTableBytes = uint64_t{64} << 20;
inline constexpr uint32_t kMaxBackingName = 1023;

// Incompatible features.
inline constexpr uint64_t kDirtyBit = 1 << 0;
inline constexpr uint64_t kCorruptBit = 1 << 1;
inline constexpr uint64_t kDataFileBit = 1 << 2;
inline constexpr uint64_t kCompressionTypeBit = 1 << 3;
inline constexpr uint64_t kExtendedL2Bit = 1 << 4;
// Compatible and autoclear features.
inline constexpr uint64_t kLazyRefcountsBit = 1 << 0;
inline constexpr uint64_t kBitmapsBit = 1 << 0;

// Where the fields stand that change in the life of an image.
inline constexpr size_t kSizeField = 24;
inline constexpr size_t kL1EntriesField = 36;
inline constexpr size_t kL1OffsetField = 40;
inline constexpr size_t kRefcountTableField = 48;
inline constexpr size_t kRefcountTableClustersField = 56;
inline constexpr size_t kIncompatibleField = 72;
inline constexpr size_t kAutoclearField = 88;

enum class Compression : uint8_t { kDeflate = 0, kZstd = 1 };

inline constexpr uint32_t kExtensionBackingFormat = 0xe2792aca;
inline constexpr uint32_t kExtensionFeatureNames = 0x6803f857;
inline constexpr uint32_t kExtensionBitmaps = 0x23852875;

struct Extension {
  uint32_t type = 0;
  std::vector<uint8_t> data;
};

struct BitmapsExtension {
  uint32_t count = 0;
  uint64_t directory_size = 0;  // bytes
  uint64_t directory_offset = 0;
};

struct Header {
  Geometry geometry;
  uint32_t version = 3;
  uint64_t size = 0;  // virtual, bytes
  uint32_t l1_entries = 0;
  uint64_t l1_offset = 0;
  uint64_t refcount_table_offset = 0;
  uint32_t refcount_table_clusters = 0;
  uint32_t snapshots = 0;
  uint64_t snapshots_offset = 0;
  uint64_t incompatible = 0;
  uint64_t compatible = 0;
  uint64_t autoclear = 0;
  uint32_t header_length = kV3HeaderLength;
  Compression compression = Compression::kDeflate;
  std::string backing_file;
  std::optional<std::string> backing_format;
  std::optional<BitmapsExtension> bitmaps;
  std::vector<Extension> extensions;  // all of them, as they stand

  bool dirty() const { return (incompatible & kDirtyBit) != 0; }
  bool corrupt() const { return (incompatible & kCorruptBit) != 0; }
  bool lazy_refcounts() const { return (compatible & kLazyRefcountsBit) != 0; }
  uint64_t refcount_table_bytes() const {
    return uint64_t{refcount_table_clusters} << geometry.cluster_bits;
  }
};

// True where the first bytes of a file are those of a qcow2 image.
bool is_qcow2(std::span<const uint8_t> start);

// How much of the file's start parse_header() wants to see: one cluster.
Result<uint32_t> header_bytes(std::span<const uint8_t> start);

// `start`: the first cluster, or all of the file where it is smaller.
Result<Header> parse_header(std::span<const uint8_t> start, uint64_t file_size);

// The first cluster of an image with that header; `extensions` are written as they stand.
Result<std::vector<uint8_t>> encode_header(const Header& header);

struct Snapshot {
  uint64_t l1_offset = 0;
  uint32_t l1_entries = 0;
  std::string id;
  std::string name;
  uint32_t seconds = 0;       // since the Epoch
  uint64_t vm_state = 0;      // bytes
  uint64_t disk_size = 0;     // bytes; 0 where the image does not say
  uint64_t entry_length = 0;  // bytes of the table that it takes
};

// One entry of the snapshot table at `at`, which runs to the end of what there is of the table.
Result<Snapshot> parse_snapshot(std::span<const uint8_t> at, const Geometry& geometry,
                                uint64_t file_size);

}  // namespace vbdkit::drivers::qcow2
