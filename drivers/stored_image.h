// SPDX-License-Identifier: LGPL-2.1-or-later
//
// StoredImage: one image beneath a node, as whoever has to find the node by it knows it. Told by
// Node::list_images(). Values only; any thread.
#pragma once

#include <cstdint>
#include <string>

namespace vbdkit::drivers {

struct StoredImage {
  std::string format{};  // "vhd"; of a leaf without layers: the driver
  std::string path{};    // as it was opened, or a URI
  // Which file that is, however it is named: of a block device the device's own number. 0: no file.
  uint64_t device = 0;
  uint64_t inode = 0;
  bool block_device = false;
  // The inode's generation where the file system has one (ioctl_iflags(2), FS_IOC_GETVERSION): a
  // number that is used again gets another one.
  uint32_t generation = 0;
  uint64_t size = 0;  // bytes; of the disk in it
  bool read_only = false;
};

}  // namespace vbdkit::drivers
