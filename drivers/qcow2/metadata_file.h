// SPDX-License-Identifier: LGPL-2.1-or-later
//
// MetadataFile: a qcow2 image's file for those who may block: opening a layer, create, check, info.
// Reads beyond the end of the file give zeroes, as the format wants it. One owner, any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "drivers/chain/image_file.h"
#include "drivers/qcow2/layout.h"

namespace vbdkit::drivers::qcow2 {

class MetadataFile {
 public:
  static Result<MetadataFile> open(const std::string& path, ImageFile::Mode mode);

  const std::string& path() const { return file_.path(); }
  bool block_device() const { return file_.block_device(); }
  uint64_t size() const { return size_; }  // bytes

  Result<void> read(uint64_t offset, std::span<uint8_t> into) const;
  Result<void> write(uint64_t offset, std::span<const uint8_t> from);
  Result<void> set_size(uint64_t size);  // nothing on a block device
  Result<void> sync() { return file_.flush(); }
  void ignore_sync() { file_.ignore_flush(); }
  // Looks at the size anew: others have written.
  Result<void> refresh();

  Result<Header> read_header() const;
  // `count` big-endian 64-bit entries; caps are the caller's.
  Result<std::vector<uint64_t>> read_table(uint64_t offset, uint64_t count) const;
  Result<void> write_table(uint64_t offset, std::span<const uint64_t> entries);

 private:
  explicit MetadataFile(ImageFile file) : file_(std::move(file)) {}

  ImageFile file_;
  uint64_t size_ = 0;
};

}  // namespace vbdkit::drivers::qcow2
