// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/info.h"

#include <algorithm>

#include "drivers/qcow2/metadata_file.h"

namespace vbdkit::drivers::qcow2 {
namespace {

Result<std::vector<Snapshot>> read_snapshots(const MetadataFile& file, const Header& header) {
  std::vector<Snapshot> snapshots;
  if (header.snapshots == 0) return snapshots;
  std::vector<uint8_t> table(
      std::min(file.size() - header.snapshots_offset, kMaxSnapshotTableBytes));
  VBDKIT_TRY(file.read(header.snapshots_offset, table));
  std::span<const uint8_t> rest = table;
  for (uint32_t i = 0; i < header.snapshots; ++i) {
    VBDKIT_ASSIGN(Snapshot snapshot, parse_snapshot(rest, header.geometry, file.size()));
    rest = rest.subspan(std::min<uint64_t>(snapshot.entry_length, rest.size()));
    snapshots.push_back(std::move(snapshot));
  }
  return snapshots;
}

Result<ImageInfo> read_all(const std::string& path) {
  VBDKIT_ASSIGN(const MetadataFile file, MetadataFile::open(path, ImageFile::Mode::kRead));
  ImageInfo info;
  info.file_size = file.size();
  VBDKIT_ASSIGN(info.header, file.read_header());
  auto snapshots = read_snapshots(file, info.header);
  if (!snapshots) return std::move(snapshots).error().context(path);
  info.snapshots = std::move(snapshots).value();
  return info;
}

}  // namespace

Result<ImageInfo> read_info(const std::string& path) {
  auto info = read_all(path);
  if (!info) return std::move(info).error().context("qcow2");
  return info;
}

}  // namespace vbdkit::drivers::qcow2
