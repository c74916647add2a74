// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/reference_map.h"

#include <algorithm>
#include <limits>
#include <set>

namespace vbdkit::drivers::qcow2 {
namespace {

constexpr uint64_t kMaxBitmaps = 65535;
constexpr uint64_t kMaxBitmapDirectory = kMaxBitmaps * 1064;
constexpr uint64_t kMaxBitmapTableBytes = uint64_t{8} << 20;

std::string at_text(const char* what, uint64_t offset) {
  return std::string(what) + " at " + std::to_string(offset);
}

class Walker {
 public:
  Walker(const MetadataFile& file, const Header& header, const WalkLimits& limits,
         Findings& findings)
      : file_(file),
        header_(header),
        g_(header.geometry),
        findings_(findings),
        left_(limits.metadata) {
    walk_.map = ReferenceMap(limits.memory);
  }

  Result<Walk> run();

 private:
  struct Clusters {
    uint64_t first;
    uint64_t end;
  };
  // What nothing else may lie in.
  struct Area {
    const char* what;
    uint64_t offset;
    Clusters clusters;
  };

  // Of a range that begins inside the file, as far as the file goes.
  Clusters clusters_of(uint64_t offset, uint64_t bytes) const;
  Result<void> count(const char* what, uint64_t offset, uint64_t bytes, uint64_t references = 1);
  Result<void> count_alone(const char* what, uint64_t offset, uint64_t bytes);
  // Before so many bytes of metadata are read. Without a limit, tables that lie over each other or
  // in a hole would make a small file take hours.
  Result<void> spend(uint64_t bytes);
  void check_alone();
  void check_alone(const Area& area, uint64_t references);
  bool valid_cluster(const char* what, uint64_t offset);
  Result<void> refcount_table();
  Result<void> l1_table(uint64_t offset, uint64_t entries, bool active);
  Result<void> l2_table(uint64_t offset, const TableUse& use);
  Result<void> snapshots();
  Result<void> bitmaps();

  const MetadataFile& file_;
  const Header& header_;
  const Geometry& g_;
  Findings& findings_;
  uint64_t left_;  // of the limit on metadata, bytes
  Walk walk_;
  uint64_t last_host_ = 0;
  std::vector<Area> alone_;  // but for L2 tables
};

Walker::Clusters Walker::clusters_of(uint64_t offset, uint64_t bytes) const {
  const uint64_t last = std::min(offset + bytes, align_up(file_.size(), g_.cluster_size())) - 1;
  return {offset >> g_.cluster_bits, (last >> g_.cluster_bits) + 1};
}

Result<void> Walker::count(const char* what, uint64_t offset, uint64_t bytes, uint64_t references) {
  if (bytes == 0) return {};
  if (!range_inside(offset, 1, file_.size())) {
    findings_.corruption(at_text(what, offset) + " is beyond the end of the file");
    return {};
  }
  const Clusters clusters = clusters_of(offset, bytes);
  return walk_.map.add(clusters.first, clusters.end - clusters.first, references);
}

Result<void> Walker::count_alone(const char* what, uint64_t offset, uint64_t bytes) {
  if (bytes != 0 && range_inside(offset, 1, file_.size()))
    alone_.push_back({what, offset, clusters_of(offset, bytes)});
  return count(what, offset, bytes);
}

Result<void> Walker::spend(uint64_t bytes) {
  if (bytes > left_)
    return Error(ErrorKind::kUnsupported, "it has more metadata than may be looked at here");
  left_ -= bytes;
  return {};
}

void Walker::check_alone() {
  for (const Area& area : alone_) check_alone(area, 1);
  for (const auto& [offset, use] : walk_.l2_tables)
    check_alone({"L2 table", offset, clusters_of(offset, g_.cluster_size())}, use.references);
}

void Walker::check_alone(const Area& area, uint64_t references) {
  for (uint64_t cluster = area.clusters.first; cluster < area.clusters.end; ++cluster) {
    if (walk_.map.get(cluster) == references) continue;
    findings_.corruption(at_text(area.what, area.offset) + " shares its place with other things");
    return;
  }
}

bool Walker::valid_cluster(const char* what, uint64_t offset) {
  if (g_.in_cluster(offset) == 0) return true;
  findings_.corruption(at_text(what, offset) + " does not start at a cluster's beginning");
  return false;
}

Result<void> Walker::refcount_table() {
  VBDKIT_TRY(
      count_alone("refcount table", header_.refcount_table_offset, header_.refcount_table_bytes()));
  VBDKIT_ASSIGN(walk_.refcount_table, file_.read_table(header_.refcount_table_offset,
                                                       header_.refcount_table_bytes() / 8));
  std::set<uint64_t> seen;
  for (uint64_t& entry : walk_.refcount_table) {
    if (entry == 0) continue;
    const bool usable =
        valid_cluster("refcount block", entry) && range_inside(entry, 1, file_.size());
    if (!usable || !seen.insert(entry).second) {
      findings_.corruption(at_text("refcount block", entry) + " is outside the file or used twice");
      entry = 0;
      continue;
    }
    VBDKIT_TRY(spend(g_.cluster_size()));
    VBDKIT_TRY(count_alone("refcount block", entry, g_.cluster_size()));
  }
  return {};
}

Result<void> Walker::l1_table(uint64_t offset, uint64_t entries, bool active) {
  VBDKIT_TRY(count_alone("L1 table", offset, entries * 8));
  VBDKIT_ASSIGN(std::vector<uint64_t> table, file_.read_table(offset, entries));
  for (uint64_t i = 0; i < entries; ++i) {
    const uint64_t l2 = table[i] & kOffsetMask;
    if (table[i] & kL1Reserved)
      findings_.note("L1 entry " + std::to_string(i) + " has reserved bits set");
    if (l2 == 0 || !valid_cluster("L2 table", l2)) continue;
    if (!range_inside(l2, g_.cluster_size(), align_up(file_.size(), g_.cluster_size()))) {
      findings_.corruption(at_text("L2 table", l2) + " is beyond the end of the file");
      continue;
    }
    TableUse& use = walk_.l2_tables[l2];
    if (use.references++ == 0) VBDKIT_TRY(spend(g_.cluster_size()));
    if (active) {
      use.active = true;
      use.active_l1_indices.push_back(i);
    }
  }
  if (active) walk_.l1 = std::move(table);
  return {};
}

Result<void> Walker::l2_table(uint64_t offset, const TableUse& use) {
  VBDKIT_TRY(count("L2 table", offset, g_.cluster_size(), use.references));
  std::vector<uint8_t> table(g_.cluster_size());
  VBDKIT_TRY(file_.read(offset, table));
  for (uint64_t i = 0; i < g_.l2_entries(); ++i) {
    const ClusterState state = g_.decode_at(&table[i * g_.entry_size()]);
    if (state.kind == ClusterState::Kind::kInvalid) {
      findings_.corruption("entry " + std::to_string(i) + " of the L2 table at " +
                           std::to_string(offset) + " is invalid");
      continue;
    }
    if (state.host == 0 && state.kind == ClusterState::Kind::kPlain) continue;
    const bool compressed = state.kind == ClusterState::Kind::kCompressed;
    VBDKIT_TRY(count(compressed ? "compressed data" : "data cluster", state.host,
                     compressed ? state.compressed_length : g_.cluster_size(), use.references));
    if (!use.active) continue;
    ++walk_.totals.allocated_clusters;
    walk_.totals.compressed_clusters += compressed ? 1 : 0;
    if (!compressed) {
      if (last_host_ != 0 && state.host != last_host_ + g_.cluster_size())
        ++walk_.totals.fragmented_clusters;
      last_host_ = state.host;
    }
  }
  return {};
}

Result<void> Walker::snapshots() {
  if (header_.snapshots == 0) return {};
  const uint64_t start = header_.snapshots_offset;
  const uint64_t bytes = std::min(file_.size() - start, kMaxSnapshotTableBytes);
  std::vector<uint8_t> table(bytes);
  VBDKIT_TRY(file_.read(start, table));
  std::span<const uint8_t> rest = table;
  for (uint32_t i = 0; i < header_.snapshots; ++i) {
    auto snapshot = parse_snapshot(rest, g_, file_.size());
    if (!snapshot) {
      findings_.corruption("internal snapshot " + std::to_string(i) + ": " +
                           snapshot.error().message());
      return count_alone("snapshot table", start, bytes - rest.size());
    }
    VBDKIT_TRY(spend(uint64_t{snapshot->l1_entries} * 8));
    VBDKIT_TRY(l1_table(snapshot->l1_offset, snapshot->l1_entries, false));
    rest = rest.subspan(std::min<uint64_t>(snapshot->entry_length, rest.size()));
  }
  return count_alone("snapshot table", start, bytes - rest.size());
}

Result<void> Walker::bitmaps() {
  // Without the bit they are stale and their clusters are leaks.
  if (!header_.bitmaps || (header_.autoclear & kBitmapsBit) == 0) return {};
  const BitmapsExtension& ext = *header_.bitmaps;
  if (ext.directory_size > kMaxBitmapDirectory ||
      !range_inside(ext.directory_offset, ext.directory_size, file_.size())) {
    findings_.corruption("the bitmap directory is outside the file or too large");
    return {};
  }
  VBDKIT_TRY(count_alone("bitmap directory", ext.directory_offset, ext.directory_size));
  std::vector<uint8_t> directory(ext.directory_size);
  VBDKIT_TRY(file_.read(ext.directory_offset, directory));
  uint64_t at = 0;
  for (uint32_t i = 0; i < ext.count; ++i) {
    constexpr uint64_t kFixed = 24;
    if (!range_inside(at, kFixed, directory.size())) {
      findings_.corruption("the bitmap directory ends before its last entry");
      return {};
    }
    const uint8_t* entry = &directory[at];
    const uint64_t table_offset = load_be<uint64_t>(entry);
    const uint64_t entries = load_be<uint32_t>(entry + 8);
    at += align_up(kFixed + load_be<uint16_t>(entry + 18) + load_be<uint32_t>(entry + 20), 8);
    if (entries * 8 > kMaxBitmapTableBytes ||
        !range_inside(table_offset, entries * 8, file_.size())) {
      findings_.corruption("a bitmap's table is outside the file or too large");
      continue;
    }
    VBDKIT_TRY(spend(entries * 8));
    VBDKIT_TRY(count_alone("bitmap table", table_offset, entries * 8));
    VBDKIT_ASSIGN(const std::vector<uint64_t> table, file_.read_table(table_offset, entries));
    for (const uint64_t value : table) {
      const uint64_t host = value & kOffsetMask;
      if (host != 0 && valid_cluster("bitmap data", host))
        VBDKIT_TRY(count("bitmap data", host, g_.cluster_size()));
    }
  }
  return {};
}

Result<Walk> Walker::run() {
  VBDKIT_TRY(count_alone("header", 0, g_.cluster_size()));
  VBDKIT_TRY(refcount_table());
  if (header_.l1_entries > 0) VBDKIT_TRY(l1_table(header_.l1_offset, header_.l1_entries, true));
  VBDKIT_TRY(snapshots());
  VBDKIT_TRY(bitmaps());
  for (const auto& [offset, use] : walk_.l2_tables) VBDKIT_TRY(l2_table(offset, use));
  check_alone();
  return std::move(walk_);
}

}  // namespace

Result<void> ReferenceMap::add(uint64_t first, uint64_t count, uint64_t references) {
  for (uint64_t cluster = first; cluster < first + count; ++cluster) {
    std::unique_ptr<Chunk>& chunk = chunks_[cluster / kChunk];
    if (chunk == nullptr) {
      if ((chunks_.size() + 1) * sizeof(Chunk) > limit_)
        return Error(ErrorKind::kUnsupported, "its clusters are too many to be counted here");
      chunk = std::make_unique<Chunk>();
    }
    uint32_t& value = (*chunk)[cluster % kChunk];
    value = static_cast<uint32_t>(
        std::min<uint64_t>(value + references, std::numeric_limits<uint32_t>::max()));
  }
  return {};
}

void ReferenceMap::remove(uint64_t first, uint64_t count) {
  for (uint64_t cluster = first; cluster < first + count; ++cluster) {
    const auto found = chunks_.find(cluster / kChunk);
    if (found == chunks_.end()) continue;
    uint32_t& value = (*found->second)[cluster % kChunk];
    if (value > 0) --value;
  }
}

uint32_t ReferenceMap::get(uint64_t cluster) const {
  const auto found = chunks_.find(cluster / kChunk);
  return found == chunks_.end() ? 0 : (*found->second)[cluster % kChunk];
}

bool ReferenceMap::any(uint64_t first, uint64_t count) const {
  const uint64_t end = first + count;
  for (auto it = chunks_.lower_bound(first / kChunk);
       it != chunks_.end() && it->first * kChunk < end; ++it) {
    const uint64_t base = it->first * kChunk;
    const uint64_t from = std::max(first, base) - base;
    const uint64_t to = std::min(end, base + kChunk) - base;
    for (uint64_t i = from; i < to; ++i)
      if ((*it->second)[i] != 0) return true;
  }
  return false;
}

uint64_t ReferenceMap::end() const {
  for (auto it = chunks_.rbegin(); it != chunks_.rend(); ++it) {
    for (uint64_t i = kChunk; i > 0; --i)
      if ((*it->second)[i - 1] != 0) return it->first * kChunk + i;
  }
  return 0;
}

void Findings::note(std::string message) {
  if (messages.size() < kMaxMessages) messages.push_back(std::move(message));
}

void Findings::corruption(std::string message) {
  ++corruptions;
  note(std::move(message));
}

Result<Walk> walk_references(const MetadataFile& file, const Header& header,
                             const WalkLimits& limits, Findings& findings) {
  return Walker(file, header, limits, findings).run();
}

Result<void> write_refcounts(MetadataFile& file, Header& header, ReferenceMap& map,
                             std::vector<uint64_t> table) {
  const Geometry& g = header.geometry;
  const uint64_t per_block = g.refcounts_per_block();
  uint64_t next = map.end();
  // New blocks and a new table are themselves clusters to be counted: again until all are.
  const uint64_t old_offset = header.refcount_table_offset;
  const uint64_t old_clusters = header.refcount_table_clusters;
  for (bool changed = true; changed;) {
    changed = false;
    const uint64_t blocks = (map.end() + per_block - 1) / per_block;
    for (uint64_t i = 0; i < blocks; ++i) {
      if (i >= table.size()) table.resize(i + 1);
      if (table[i] != 0 || !map.any(i * per_block, per_block)) continue;
      table[i] = next << g.cluster_bits;
      VBDKIT_TRY(map.add(next++, 1));
      changed = true;
    }
    const uint64_t clusters = std::max<uint64_t>(1, g.clusters_for(table.size() * 8));
    if (clusters > g.max_refcount_table_clusters() && clusters > 1)
      return Error(ErrorKind::kUnsupported,
                   file.path() + ": the refcount table would be too large");
    if (clusters <= header.refcount_table_clusters) continue;
    // One reference each; the table that was in use so far is free then.
    map.remove(header.refcount_table_offset >> g.cluster_bits, header.refcount_table_clusters);
    header.refcount_table_offset = next << g.cluster_bits;
    header.refcount_table_clusters = static_cast<uint32_t>(clusters);
    VBDKIT_TRY(map.add(next, clusters));
    next += clusters;
    changed = true;
  }

  std::vector<uint8_t> block(g.cluster_size());
  for (uint64_t i = 0; i < table.size(); ++i) {
    if (table[i] == 0) continue;
    std::fill(block.begin(), block.end(), uint8_t{0});
    for (uint64_t k = 0; k < per_block; ++k) {
      const uint64_t cluster = i * per_block + k;
      if (cluster % ReferenceMap::kChunk == 0 && !map.any(cluster, ReferenceMap::kChunk)) {
        k += ReferenceMap::kChunk - 1;
        continue;
      }
      const uint64_t count = map.get(cluster);
      if (count > g.max_refcount())
        return Error(ErrorKind::kCorrupt, file.path() + ": a refcount of " + std::to_string(count) +
                                              " does not fit in " +
                                              std::to_string(g.refcount_bits()) + " bits");
      if (count != 0) g.set_refcount(block.data(), k, count);
    }
    VBDKIT_TRY(file.write(table[i], block));
  }
  table.resize(header.refcount_table_bytes() / 8);
  VBDKIT_TRY(file.sync());
  VBDKIT_TRY(file.write_table(header.refcount_table_offset, table));
  if (header.refcount_table_offset == old_offset && header.refcount_table_clusters == old_clusters)
    return file.sync();
  VBDKIT_TRY(file.sync());
  std::array<uint8_t, 12> fields;
  store_be(&fields[0], header.refcount_table_offset);
  store_be(&fields[8], header.refcount_table_clusters);
  VBDKIT_TRY(file.write(kRefcountTableField, fields));
  return file.sync();
}

}  // namespace vbdkit::drivers::qcow2
