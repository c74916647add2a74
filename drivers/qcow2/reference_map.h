// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ReferenceMap: how often each cluster of a qcow2 file is referred to, as the metadata itself says
// it (header, tables, L2 entries of the disk and its internal snapshots, bitmaps): the truth that
// refcounts are checked and rebuilt against. Bounded memory; one owner, any thread.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "drivers/qcow2/metadata_file.h"

namespace vbdkit::drivers::qcow2 {

class ReferenceMap {
 public:
  static constexpr uint64_t kChunk = 4096;  // clusters
  static constexpr uint64_t kMaxBytes = uint64_t{1} << 30;

  // Bytes of memory: add() fails where it would take more.
  explicit ReferenceMap(uint64_t limit = kMaxBytes) : limit_(limit) {}

  // Counts stop at 2^32 - 1.
  Result<void> add(uint64_t first, uint64_t count, uint64_t references = 1);
  void remove(uint64_t first, uint64_t count);  // one reference each
  uint32_t get(uint64_t cluster) const;
  bool any(uint64_t first, uint64_t count) const;
  uint64_t end() const;  // one beyond the last cluster that is referred to

 private:
  using Chunk = std::array<uint32_t, kChunk>;
  uint64_t limit_;
  std::map<uint64_t, std::unique_ptr<Chunk>> chunks_;
};

// What a walk may take: an image claims what it likes, and most of its file may be a hole.
struct WalkLimits {
  uint64_t metadata = uint64_t{16} << 30;  // bytes of tables and refcount blocks to be read
  uint64_t memory = ReferenceMap::kMaxBytes;
};

// What a walk over the metadata found wrong.
struct Findings {
  static constexpr size_t kMaxMessages = 64;
  uint64_t corruptions = 0;
  std::vector<std::string> messages;  // the first kMaxMessages

  void corruption(std::string message);
  void note(std::string message);
};

// Facts that come out of the walk by the way.
struct WalkTotals {
  uint64_t allocated_clusters = 0;   // of the disk, without snapshots
  uint64_t compressed_clusters = 0;  // among them
  uint64_t fragmented_clusters = 0;  // that don't follow their predecessor in the file
};

// One L2 table, as found in L1 tables.
struct TableUse {
  uint64_t references = 0;
  bool active = false;  // reachable from the disk's own L1 table
  std::vector<uint64_t> active_l1_indices;
};

struct Walk {
  ReferenceMap map;
  WalkTotals totals;
  std::map<uint64_t, TableUse> l2_tables;  // by offset
  std::vector<uint64_t> l1;                // the disk's
  std::vector<uint64_t> refcount_table;    // entries that are of no use are 0
};

// An error where the image is larger than the limits allow.
Result<Walk> walk_references(const MetadataFile& file, const Header& header,
                             const WalkLimits& limits, Findings& findings);

// Makes the refcounts in the file those of the map, with new blocks and a new table where needed
// (which are added to the map and go behind all else); then `header` and the file's header point
// at them.
Result<void> write_refcounts(MetadataFile& file, Header& header, ReferenceMap& map,
                             std::vector<uint64_t> refcount_table);

}  // namespace vbdkit::drivers::qcow2
