// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests of VHDs: a directory for images that goes with the test, and a reader that shares
// nothing with the layers but the parsing of single structures.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <string>
#include <vector>

#include "drivers/chain/image_file.h"
#include "drivers/vhd/metadata.h"

namespace vbdkit::drivers::vhd {

class TestDirectory {
 public:
  explicit TestDirectory(std::string base = "/dev/shm") : path_(base + "/vbdkit-vhd-XXXXXX") {
    if (mkdtemp(path_.data()) == nullptr) abort();
  }
  TestDirectory(const TestDirectory&) = delete;
  TestDirectory& operator=(const TestDirectory&) = delete;
  ~TestDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// What a dynamic or differencing image reads as over `below` (zeroes where that ends).
inline Result<std::vector<std::byte>> read_disk(const std::string& path,
                                                const std::vector<std::byte>& below) {
  VBDKIT_ASSIGN(const ImageFile file, ImageFile::open(path, ImageFile::Mode::kRead));
  VBDKIT_ASSIGN(const Metadata metadata, read_metadata(file));
  VBDKIT_ASSIGN(const auto table, read_table(file, metadata));
  std::vector<std::byte> disk = below;
  disk.resize(metadata.size().v);
  const DynamicHeader& header = metadata.header;
  std::vector<std::byte> block(header.bitmap_bytes() + header.block_size);
  for (uint32_t i = 0; i < metadata.blocks(); ++i) {
    if (table[i] == kUnused) continue;
    VBDKIT_TRY(file.read(uint64_t{table[i]} * kSectorSize, block));
    for (uint32_t s = 0; s < header.sectors_per_block(); ++s) {
      const uint64_t at = uint64_t{i} * header.block_size + s * kSectorSize;
      if (at < disk.size() && test_bit(block.data(), s))
        memcpy(disk.data() + at, block.data() + header.bitmap_bytes() + s * kSectorSize,
               kSectorSize);
    }
  }
  return disk;
}

}  // namespace vbdkit::drivers::vhd
