// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Making VHDs and changing what their headers say: for the command line and for control operations.
// Blocking I/O on images that nobody has open; any thread.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "drivers/chain/image_file.h"
#include "drivers/image_format.h"
#include "drivers/vhd/layout.h"

namespace vbdkit::drivers::vhd {

struct CreateOptions {
  DiskType type = DiskType::kDynamic;
  Bytes size{};  // rounded up to sectors; 0 with a parent: the parent's
  uint32_t block_size = kMaxBlock;
  // tapdisk's map of full blocks, which saves reading their bitmaps.
  bool batmap = true;
  // kDifferencing: a VHD, or with raw_parent a plain file. Locators name it relative to the new
  // image, as tapdisk writes them.
  std::string parent{};
  bool raw_parent = false;
};

// Makes the file, which must not exist (a block device is overwritten), and makes it durable.
Result<void> create(const std::string& path, const CreateOptions& options);

// Makes the disk larger. On a crash it has the old size or the new one. Blocks that stand where the
// block table grows are moved to the end of the file first.
Result<void> grow(ImageFile& file, Bytes size);

// Lets a differencing image stand on another parent, whose content must be what the image expects:
// the writes that do so (see ImageFormat), or all of them done.
Result<std::vector<FilePatch>> plan_parent(const std::string& path, const std::string& parent,
                                           bool raw_parent);
Result<void> set_parent(const std::string& path, const std::string& parent, bool raw_parent);

// Makes a differencing image a dynamic one, of whose parent nothing shows through (see
// ImageFormat).
Result<std::vector<FilePatch>> plan_alone(const std::string& path);

// tapdisk's mark of a node that no guest uses by itself.
Result<void> set_hidden(const std::string& path, bool hidden);

}  // namespace vbdkit::drivers::vhd
