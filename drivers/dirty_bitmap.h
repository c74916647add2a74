// SPDX-License-Identifier: LGPL-2.1-or-later
//
// DirtyBitmap: which parts of a disk were changed since some moment, as a node of the graph keeps
// it for those who copy only that: the NBD server (as QEMU's context "qemu:dirty-bitmap:NAME") and
// `vbdkit map --changed`.
// Owned by its node; the reactor's thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "drivers/node.h"

namespace vbdkit::drivers {

class DirtyBitmap {
 public:
  struct Run {
    uint64_t length = 0;  // bytes
    bool dirty = false;
  };

  virtual const std::string& name() const = 0;
  virtual uint64_t granularity() const = 0;  // bytes
  // What begins at `offset` and is alike; ends at `end` at the latest. offset < end, and end lies
  // inside the disk.
  virtual Run run_at(uint64_t offset, uint64_t end) const = 0;
  // Begins anew: nothing is changed. Only while nothing is in flight; blocks.
  Result<void> clear() { return keep_only({}); }
  // Likewise, but for these ranges (of bytes), which count as changed.
  struct Range {
    uint64_t offset = 0;
    uint64_t length = 0;
  };
  virtual Result<void> keep_only(const std::vector<Range>& ranges) = 0;

 protected:
  ~DirtyBitmap() = default;
};

// Those of a graph, from its top on down.
inline std::vector<DirtyBitmap*> dirty_bitmaps(Node& top) {
  std::vector<DirtyBitmap*> found;
  for (Node* node = &top; node != nullptr; node = node->next_node())
    if (DirtyBitmap* bitmap = node->dirty_bitmap()) found.push_back(bitmap);
  return found;
}

// Or nullptr.
inline DirtyBitmap* find_dirty_bitmap(Node& top, std::string_view name) {
  for (DirtyBitmap* bitmap : dirty_bitmaps(top))
    if (bitmap->name() == name) return bitmap;
  return nullptr;
}

}  // namespace vbdkit::drivers
