// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/metadata_file.h"

#include <algorithm>
#include <array>

namespace vbdkit::drivers::qcow2 {

Result<MetadataFile> MetadataFile::open(const std::string& path, ImageFile::Mode mode) {
  VBDKIT_ASSIGN(ImageFile opened, ImageFile::open(path, mode));
  MetadataFile file(std::move(opened));
  VBDKIT_TRY(file.refresh());
  return file;
}

Result<void> MetadataFile::refresh() {
  VBDKIT_ASSIGN(const Bytes size, file_.size());
  size_ = size.v;
  return {};
}

Result<void> MetadataFile::read(uint64_t offset, std::span<uint8_t> into) const {
  VBDKIT_ASSIGN(const size_t filled, file_.read_some(offset, std::as_writable_bytes(into)));
  std::fill(into.begin() + static_cast<ptrdiff_t>(filled), into.end(), uint8_t{0});
  return {};
}

Result<void> MetadataFile::write(uint64_t offset, std::span<const uint8_t> from) {
  VBDKIT_TRY(file_.write(offset, std::as_bytes(from)));
  size_ = std::max(size_, offset + from.size());
  return {};
}

Result<void> MetadataFile::set_size(uint64_t size) {
  VBDKIT_TRY(file_.resize(Bytes{size}));
  if (!file_.block_device()) size_ = size;
  return {};
}

Result<Header> MetadataFile::read_header() const {
  std::vector<uint8_t> start(std::min<uint64_t>(kV2HeaderLength, size_));
  VBDKIT_TRY(read(0, start));
  auto length = header_bytes(start);
  if (!length) return std::move(length).error().context(path());
  start.resize(std::min<uint64_t>(*length, size_));
  VBDKIT_TRY(read(0, start));
  auto header = parse_header(start, size_);
  if (!header) return std::move(header).error().context(path());
  return header;
}

Result<std::vector<uint64_t>> MetadataFile::read_table(uint64_t offset, uint64_t count) const {
  std::vector<uint64_t> entries(count);
  VBDKIT_TRY(read(offset, {reinterpret_cast<uint8_t*>(entries.data()), count * 8}));
  for (uint64_t& entry : entries) entry = load_be<uint64_t>(&entry);
  return entries;
}

Result<void> MetadataFile::write_table(uint64_t offset, std::span<const uint64_t> entries) {
  std::array<uint8_t, 4096> piece;
  while (!entries.empty()) {
    const size_t n = std::min(entries.size(), piece.size() / 8);
    for (size_t i = 0; i < n; ++i) store_be(&piece[i * 8], entries[i]);
    VBDKIT_TRY(write(offset, std::span(piece).first(n * 8)));
    entries = entries.subspan(n);
    offset += n * 8;
  }
  return {};
}

}  // namespace vbdkit::drivers::qcow2
