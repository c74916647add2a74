// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/check.h"

#include <algorithm>
#include <array>

namespace vbdkit::drivers::qcow2 {
namespace {

// The refcounts as the file has them, one block at a time.
class StoredRefcounts {
 public:
  StoredRefcounts(const MetadataFile& file, const Geometry& geometry,
                  const std::vector<uint64_t>& table)
      : file_(file), g_(geometry), table_(table), block_(geometry.cluster_size()) {}

  Result<uint64_t> get(uint64_t cluster) {
    VBDKIT_ASSIGN(const uint8_t* const block, block_of(cluster));
    if (block == nullptr) return uint64_t{0};
    return g_.get_refcount(block, cluster % g_.refcounts_per_block());
  }

  // The block that counts the cluster; nullptr where there is none.
  Result<const uint8_t*> block_of(uint64_t cluster) {
    const uint64_t index = cluster / g_.refcounts_per_block();
    if (index >= table_.size() || table_[index] == 0) return nullptr;
    if (loaded_ != table_[index]) {
      VBDKIT_TRY(file_.read(table_[index], block_));
      loaded_ = table_[index];
    }
    return block_.data();
  }

 private:
  const MetadataFile& file_;
  const Geometry& g_;
  const std::vector<uint64_t>& table_;
  std::vector<uint8_t> block_;
  uint64_t loaded_ = 0;
};

class Checker {
 public:
  Checker(MetadataFile& file, Header header, Repair repair, const WalkLimits& limits)
      : file_(file),
        header_(std::move(header)),
        g_(header_.geometry),
        repair_(repair),
        limits_(limits) {}

  Result<CheckResult> run();

 private:
  // Corruptions that a rebuild of refcounts and flags can mend are counted apart.
  void mendable(std::string message) {
    ++mendable_;
    findings_.note(std::move(message));
  }
  Result<void> compare_refcounts();
  void compare(uint64_t cluster, uint64_t refcount);
  Result<void> check_copied();
  Result<void> check_copied_table(uint64_t offset, StoredRefcounts& stored);
  Result<void> mend();
  Result<void> set_copied();
  Result<void> clear_header_bits(uint64_t bits);

  MetadataFile& file_;
  Header header_;
  const Geometry& g_;
  const Repair repair_;
  const WalkLimits limits_;
  Findings findings_;
  Walk walk_;
  CheckResult result_;
  uint64_t mendable_ = 0;
};

Result<void> Checker::compare_refcounts() {
  StoredRefcounts stored(file_, g_, walk_.refcount_table);
  const uint64_t per_block = g_.refcounts_per_block();
  const uint64_t end = std::max(walk_.map.end(), walk_.refcount_table.size() * per_block);
  // In steps that are cheap to skip where neither side knows of anything.
  const uint64_t step = std::min(per_block, ReferenceMap::kChunk);
  for (uint64_t first = 0; first < end; first += step) {
    VBDKIT_ASSIGN(const uint8_t* const block, stored.block_of(first));
    const bool used = walk_.map.any(first, step);
    if (block == nullptr && !used) {
      // Most of a sparse table: whole blocks that are not there.
      if (first % per_block == 0 && !walk_.map.any(first, per_block)) first += per_block - step;
      continue;
    }
    for (uint64_t cluster = first; cluster < first + step; ++cluster) {
      const uint64_t refcount = block == nullptr ? 0 : g_.get_refcount(block, cluster % per_block);
      if (refcount != 0 || used) compare(cluster, refcount);
    }
  }
  return {};
}

void Checker::compare(uint64_t cluster, uint64_t refcount) {
  const uint64_t references = walk_.map.get(cluster);
  if (refcount == references) return;
  std::string text = "cluster " + std::to_string(cluster) + ": refcount " +
                     std::to_string(refcount) + ", references " + std::to_string(references);
  if (refcount > references) {
    ++result_.leaks;
    findings_.note("leaked " + std::move(text));
  } else {
    mendable(std::move(text));
  }
}

// "Copied" must be set exactly where the refcount is one, in what the disk's L1 table reaches.
Result<void> Checker::check_copied() {
  StoredRefcounts stored(file_, g_, walk_.refcount_table);
  for (const auto& [offset, use] : walk_.l2_tables) {
    if (!use.active) continue;
    VBDKIT_ASSIGN(const uint64_t refcount, stored.get(offset >> g_.cluster_bits));
    for (const uint64_t index : use.active_l1_indices) {
      if (((walk_.l1[index] & kCopiedFlag) != 0) != (refcount == 1))
        mendable("L1 entry " + std::to_string(index) + ": its copied flag contradicts refcount " +
                 std::to_string(refcount));
    }
    VBDKIT_TRY(check_copied_table(offset, stored));
  }
  return {};
}

Result<void> Checker::check_copied_table(uint64_t offset, StoredRefcounts& stored) {
  std::vector<uint8_t> table(g_.cluster_size());
  VBDKIT_TRY(file_.read(offset, table));
  for (uint64_t i = 0; i < g_.l2_entries(); ++i) {
    const uint64_t descriptor = load_be<uint64_t>(&table[i * g_.entry_size()]);
    const ClusterState state = g_.decode_at(&table[i * g_.entry_size()]);
    bool expected = false;
    if (state.kind == ClusterState::Kind::kInvalid) continue;
    if (state.kind == ClusterState::Kind::kPlain) {
      if (state.host == 0 || !range_inside(state.host, 1, file_.size())) continue;
      VBDKIT_ASSIGN(const uint64_t refcount, stored.get(state.host >> g_.cluster_bits));
      expected = refcount == 1;
    }
    if (((descriptor & kCopiedFlag) != 0) != expected)
      mendable("entry " + std::to_string(i) + " of the L2 table at " + std::to_string(offset) +
               ": wrong copied flag");
  }
  return {};
}

// After the refcounts: the flags by the references counted.
Result<void> Checker::set_copied() {
  std::vector<uint8_t> table(g_.cluster_size());
  for (const auto& [offset, use] : walk_.l2_tables) {
    if (!use.active) continue;
    const bool own = walk_.map.get(offset >> g_.cluster_bits) == 1;
    for (const uint64_t index : use.active_l1_indices)
      walk_.l1[index] = (walk_.l1[index] & ~kCopiedFlag) | (own ? kCopiedFlag : 0);
    VBDKIT_TRY(file_.read(offset, table));
    bool changed = false;
    for (uint64_t i = 0; i < g_.l2_entries(); ++i) {
      uint8_t* const entry = &table[i * g_.entry_size()];
      const uint64_t descriptor = load_be<uint64_t>(entry);
      const ClusterState state = g_.decode_at(entry);
      if (state.kind == ClusterState::Kind::kInvalid) continue;
      const bool single = state.kind == ClusterState::Kind::kPlain && state.host != 0 &&
                          walk_.map.get(state.host >> g_.cluster_bits) == 1;
      const uint64_t wanted = (descriptor & ~kCopiedFlag) | (single ? kCopiedFlag : 0);
      if (wanted == descriptor) continue;
      store_be(entry, wanted);
      changed = true;
    }
    if (changed) VBDKIT_TRY(file_.write(offset, table));
  }
  return file_.write_table(header_.l1_offset, walk_.l1);
}

Result<void> Checker::clear_header_bits(uint64_t bits) {
  if (header_.version < 3 || (header_.incompatible & bits) == 0) return {};
  VBDKIT_TRY(file_.sync());
  header_.incompatible &= ~bits;
  std::array<uint8_t, 8> field;
  store_be(field.data(), header_.incompatible);
  VBDKIT_TRY(file_.write(kIncompatibleField, field));
  return file_.sync();
}

Result<void> Checker::mend() {
  const bool all = repair_ == Repair::kAll;
  // An invalid entry may be all that is left of some cluster's owner: nothing is given free then.
  if (repair_ == Repair::kNone || findings_.corruptions != 0) return {};
  if (!all && mendable_ != 0) return {};
  if (mendable_ != 0 || result_.leaks != 0) {
    VBDKIT_TRY(write_refcounts(file_, header_, walk_.map, walk_.refcount_table));
    VBDKIT_TRY(set_copied());
    VBDKIT_TRY(file_.sync());
  }
  result_.corruptions_fixed = std::exchange(mendable_, 0);
  result_.leaks_fixed = std::exchange(result_.leaks, 0);
  return clear_header_bits(all ? kDirtyBit | kCorruptBit : 0);
}

Result<CheckResult> Checker::run() {
  VBDKIT_ASSIGN(walk_, walk_references(file_, header_, limits_, findings_));
  VBDKIT_TRY(compare_refcounts());
  VBDKIT_TRY(check_copied());
  VBDKIT_TRY(mend());
  result_.corruptions = findings_.corruptions + mendable_;
  result_.total_clusters = g_.clusters_for(header_.size);
  result_.allocated_clusters = walk_.totals.allocated_clusters;
  result_.compressed_clusters = walk_.totals.compressed_clusters;
  result_.fragmented_clusters = walk_.totals.fragmented_clusters;
  result_.image_end = walk_.map.end() << g_.cluster_bits;
  result_.messages = std::move(findings_.messages);
  return std::move(result_);
}

}  // namespace

Result<CheckResult> check_image(MetadataFile& file, Repair repair, const WalkLimits& limits) {
  VBDKIT_ASSIGN(Header header, file.read_header());
  return Checker(file, std::move(header), repair, limits).run();
}

Result<CheckResult> check_image(const std::string& path, Repair repair) {
  auto file = MetadataFile::open(
      path, repair == Repair::kNone ? ImageFile::Mode::kRead : ImageFile::Mode::kWrite);
  if (!file) return std::move(file).error().context("qcow2");
  auto result = check_image(*file, repair);
  if (!result) return std::move(result).error().context("qcow2: check");
  return result;
}

}  // namespace vbdkit::drivers::qcow2
