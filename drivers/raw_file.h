// SPDX-License-Identifier: LGPL-2.1-or-later
//
// RawFile: one opening of the file or block device of a raw node. A reopen makes another one;
// requests in flight stay with theirs, which is closed with the last of them. The reactor's thread.
#pragma once

#include <memory>
#include <string>

#include "base/fd.h"
#include "drivers/file_probe.h"
#include "drivers/node.h"

namespace vbdkit::drivers {

class RawNode;

struct RawFile {
  RawNode* node = nullptr;
  Fd fd;
  FileFacts facts;
  bool read_only = false;
  // Direct I/O has these bits of addresses, and of offsets and lengths, zero; both 0 in the page
  // cache, where anything goes.
  uint64_t memory_mask = 0;
  uint64_t block_mask = 0;
  uint32_t in_flight = 0;  // requests

  // `align`: no less than this alignment for direct I/O; 0: what the kernel says.
  // Falls back to the page cache where the file system refuses direct I/O.
  [[gnu::cold]] static Result<std::unique_ptr<RawFile>> open(const std::string& path,
                                                             bool read_only, bool direct,
                                                             uint32_t align);

  bool direct() const { return block_mask != 0; }
  // io::FileOp::copies_only. A durable write waits for the disk.
  bool only_copies(bool write, bool durable) const {
    return !durable && (facts.transfers_copy || (write && !direct() && facts.cached_writes_copy));
  }
  void leave_direct();
  bool same_as(const RawFile& other) const;  // the same file, under whatever name

  // True where the kernel takes the request's offset, length and memory as they are.
  bool block_aligned(const Request& r) const { return ((r.offset | r.length) & block_mask) == 0; }
  bool aligned(const Request& r) const {
    uint64_t lengths = r.offset | r.length;
    uint64_t addresses = 0;
    for (uint32_t i = 0; i < r.iov_count; ++i) {
      lengths |= r.iov[i].iov_len;
      addresses |= reinterpret_cast<uint64_t>(r.iov[i].iov_base);
    }
    return (lengths & block_mask) == 0 && (addresses & memory_mask) == 0;
  }
};

}  // namespace vbdkit::drivers
