// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/jobs/extent_cursor.h"

#include <algorithm>
#include <cerrno>

namespace vbdkit::drivers {
namespace {

// Long enough that asking costs nothing beside the copying, short enough that it is answered soon.
constexpr uint64_t kStretch = uint64_t{1} << 30;  // bytes
constexpr size_t kExtents = 1024;

}  // namespace

void ExtentCursor::fetch(std::function<void(int error)> ready) {
  const uint64_t size = node_.info().size.v;
  if (known_ >= size) {
    extents_.push_back({end_ - known_, false, true});
    known_ = end_;
    ready(0);
    return;
  }
  fetching_ = true;
  ready_ = std::move(ready);
  status_.offset = known_;
  status_.length = std::min({kStretch, end_ - known_, size - known_});
  status_.max_extents = kExtents;
  status_.extents.clear();
  status_.done = [this](int error) { answered(error); };
  node_.block_status(status_);
}

void ExtentCursor::answered(int error) {
  fetching_ = false;
  if (error == EOPNOTSUPP) {
    extents_.push_back({status_.length, true, false});
    known_ += status_.length;
    error = 0;
  } else if (error == 0) {
    uint64_t left = status_.length;
    for (const Extent& extent : status_.extents) {
      extents_.push_back({std::min(extent.length, left), extent.allocated, extent.zero});
      left -= extents_.back().length;
      if (left == 0) break;
    }
    known_ += status_.length - left;
  }
  const auto ready = std::move(ready_);
  ready(error);
}

void ExtentCursor::advance(uint64_t length) {
  position_ += length;
  while (length > 0) {
    Extent& front = extents_.front();
    const uint64_t taken = std::min(front.length, length);
    front.length -= taken;
    length -= taken;
    if (front.length == 0) extents_.pop_front();
  }
}

}  // namespace vbdkit::drivers
