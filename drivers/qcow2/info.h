// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a qcow2 image says of itself, for people and programs. Blocks; any thread.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "drivers/qcow2/layout.h"

namespace vbdkit::drivers::qcow2 {

struct ImageInfo {
  Header header;
  std::vector<Snapshot> snapshots;
  uint64_t file_size = 0;  // bytes
};

Result<ImageInfo> read_info(const std::string& path);

}  // namespace vbdkit::drivers::qcow2
