// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Which image a node spec is about, so that two specs of one image are known as such however they
// are spelled. No thread affinity; looks at the file system.
#pragma once

#include <string>

#include "drivers/registry.h"

namespace vbdkit::hotplug {

// A comparable name: a file by device and inode, a block device by its number, anything else (a
// URI, a path that cannot be looked at) by its text. Empty for what nobody can share, as a ram
// disk.
std::string image_identity(const drivers::GraphSpec& spec);

}  // namespace vbdkit::hotplug
