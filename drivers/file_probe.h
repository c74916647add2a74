// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the kernel knows about an open file or block device: its size, how direct I/O must be
// aligned, and what it tells of the storage beneath (statx(2), ioctl_list, queue attributes in
// Documentation/ABI/stable/sysfs-block). Asked once at open; blocks.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "base/units.h"

namespace vbdkit::drivers {

struct FileFacts {
  bool block_device = false;
  // Direct I/O: alignment of memory, and of offsets and lengths. 0: not possible.
  uint32_t memory_alignment = 0;
  uint32_t offset_alignment = 0;
  uint32_t logical_block = 512;
  uint32_t physical_block = 512;
  uint32_t discard_granularity = 0;  // 0: no discard
  bool rotational = false;
  // Where the kernel only copies memory, but io_uring would use a worker thread: all transfers of
  // a file system in memory, and writes through the page cache of ext4 and its forebears.
  bool transfers_copy = false;
  bool cached_writes_copy = false;
};

// Refuses what is neither a regular file nor a block device. `what` opens error messages.
[[gnu::cold]] Result<FileFacts> probe_file(int fd, const std::string& what);

// The present size in bytes, as the file or device has it.
[[gnu::cold]] Result<Bytes> probe_size(int fd, bool block_device, const std::string& what);

}  // namespace vbdkit::drivers
