// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What stands in front of and behind a VHD's blocks, read from its file with blocking I/O and
// checked against the file's size: for opening a layer, check, info and set_parent. Tables are read
// only where asked for. Any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "drivers/chain/image_file.h"
#include "drivers/chain/layer.h"
#include "drivers/vhd/layout.h"

namespace vbdkit::drivers::vhd {

struct Metadata {
  Footer footer;
  DynamicHeader header;     // not of a fixed disk
  uint64_t file_size = 0;   // bytes
  bool tail_valid = false;  // the footer at the end of the file is the one taken
  bool copy_valid = false;  // the footer at its start agrees; never of a fixed disk
  std::optional<BatmapHeader> batmap;
  uint64_t batmap_header_at = 0;
  // Everything that is no block, by start; empty for a fixed disk.
  struct Range {
    uint64_t start = 0;
    uint64_t end = 0;
  };
  std::vector<Range> structures;
  // False: a parent locator reaches beyond the file, and blocks that the file grows by would be
  // taken for it.
  bool locators_inside = true;

  bool fixed() const { return footer.type == DiskType::kFixed; }
  bool differencing() const { return footer.type == DiskType::kDifferencing; }
  Bytes size() const { return Bytes{footer.disk_size()}; }
  // Blocks that the disk's size needs; the table may have more entries.
  uint32_t blocks() const;
  // Where the first block of an empty image goes. Images made here have room behind the table.
  uint64_t blocks_begin() const;
  bool touches_structures(uint64_t start, uint64_t end) const;
  // Whether a BAT entry points at a block that lies inside the file and upon nothing else.
  bool valid_entry(uint32_t entry) const;
};

// tapdisk has its batmap behind the table, where QEMU puts the first block of an empty image; those
// made here have it behind the dynamic header.
uint64_t batmap_header_place(const Footer& footer, const DynamicHeader& header);

// Takes the footer at the end of the file, or its copy at the start where that one is damaged. An
// error reads "vhd: PATH: reason".
Result<Metadata> read_metadata(const ImageFile& file);

// The whole block table: file sectors, host order.
Result<std::vector<uint32_t>> read_table(const ImageFile& file, const Metadata& metadata);

// One bit per block, or nothing where there is none that can be trusted.
std::optional<std::vector<std::byte>> read_batmap(const ImageFile& file, const Metadata& metadata);

// The first byte behind all blocks.
uint64_t end_of_blocks(const Metadata& metadata, const std::vector<uint32_t>& table);

// Where one of the two footers is damaged, writes it from the other and makes it durable. The file
// grows where a block stands in the place of the one at the end.
Result<void> mend_footers(ImageFile& file, Metadata& metadata, const std::vector<uint32_t>& table);

// Makes it durable.
Result<void> write_batmap(ImageFile& file, const Metadata& metadata,
                          std::span<const std::byte> map);

// Where the image says that its parent is. Looks which of the candidates exists.
Result<ParentReference> read_parent(const ImageFile& file, const Metadata& metadata);

}  // namespace vbdkit::drivers::vhd
