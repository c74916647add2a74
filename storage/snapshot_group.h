// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit snapshot --group: snapshots of several images at one moment, all or none
// (drivers/group_snapshot.h). Disks in use stand still together; images that nobody has open are
// locked meanwhile. Blocks; one thread.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "drivers/registry.h"
#include "storage/registry.h"

namespace vbdkit::storage {

struct GroupImage {
  drivers::NodeSpec image;
  std::string name;  // which its present content gets
};

// "vhd:/srv/b.vhd=/srv/b-before.vhd"
Result<GroupImage> parse_group_image(const std::string& text);

// `longest`: a disk that stood still for so long goes on, and no snapshot is taken.
Result<void> take_group(const std::vector<GroupImage>& images,
                        const std::map<std::string, std::string>& options,
                        std::chrono::milliseconds longest, const Registry& registry,
                        const Logger& log);

}  // namespace vbdkit::storage
