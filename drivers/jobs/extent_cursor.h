// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ExtentCursor: walks over what is known of a node's bytes (which read as zeroes, which are stored
// at all), from a start to an end, asking the node for a long stretch at a time. A node that cannot
// tell counts as data throughout; beyond its size there are unallocated zeroes.
// Thread: the node's reactor. The job that owns it keeps it until a fetch has been answered.
#pragma once

#include <deque>
#include <functional>

#include "drivers/node.h"

namespace vbdkit::drivers {

class ExtentCursor {
 public:
  ExtentCursor(Node& node, uint64_t start, uint64_t end)
      : node_(node), position_(start), known_(start), end_(end) {}

  bool at_end() const { return position_ >= end_; }
  // Whether the next `length` bytes are known, or all there are.
  bool knows(uint64_t length) const {
    return !extents_.empty() && (known_ >= end_ || known_ - position_ >= length);
  }
  // Asks for more; `ready` may run inside. Only where not all is known yet.
  void fetch(std::function<void(int error)> ready);
  bool fetching() const { return fetching_; }

  // Known from position() on; adjacent ones may be alike.
  const std::deque<Extent>& extents() const { return extents_; }
  uint64_t position() const { return position_; }
  // At most what is known.
  void advance(uint64_t length);

 private:
  void answered(int error);

  Node& node_;
  StatusRequest status_;
  std::function<void(int error)> ready_;
  std::deque<Extent> extents_;
  uint64_t position_;
  uint64_t known_;
  const uint64_t end_;
  bool fetching_ = false;
};

}  // namespace vbdkit::drivers
