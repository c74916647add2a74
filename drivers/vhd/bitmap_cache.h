// SPDX-License-Identifier: LGPL-2.1-or-later
//
// BitmapCache: the sector bitmaps of the blocks that a leaf is writing to. A bitmap is read when it
// is first needed, shared by all who wait for it, and kept while it is pinned or dirty; of the
// others the ones used last. The reactor's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <unordered_map>
#include <vector>

#include "drivers/node.h"
#include "drivers/vhd/layout.h"

namespace vbdkit::drivers::vhd {

struct Bitmap {
  Request request;  // first; of the reading
  iovec iov{};
  class BitmapCache* cache = nullptr;
  uint32_t block = 0;
  uint32_t set = 0;   // bits
  uint32_t pins = 0;  // users who hold its address
  bool loading = false;
  bool dirty = false;
  std::vector<SectorBuffer> sectors;
  std::vector<std::function<void(int error)>> waiters;

  std::byte* bits() { return sectors.front().bytes.data(); }
  size_t bytes() const { return sectors.size() * kSectorSize; }
};

class BitmapCache {
 public:
  // `bits`: of a bitmap; `keep`: bitmaps kept without need.
  BitmapCache(Node& file, uint32_t bits, uint32_t bytes, size_t keep)
      : file_(file), bits_(bits), bytes_(bytes), keep_(keep) {}

  // Null where it is not in memory or still being read.
  Bitmap* find(uint32_t block);
  // Of a block that has just been allocated: nothing is set, nothing is read.
  Bitmap& create(uint32_t block);
  // Reads it from the file, or joins a reading under way. `done` may run inside.
  void load(uint32_t block, uint64_t file_offset, std::function<void(int error)> done);

  void pin(Bitmap& bitmap) { ++bitmap.pins; }
  void unpin(Bitmap& bitmap);
  void clear() { index_.clear(), order_.clear(); }
  size_t size() const { return order_.size(); }

 private:
  using Order = std::list<std::unique_ptr<Bitmap>>;  // the one used last at the end

  Bitmap& add(uint32_t block);
  void loaded(Bitmap& bitmap, int error);
  void trim();

  Node& file_;
  const uint32_t bits_;
  const uint32_t bytes_;
  const size_t keep_;
  Order order_;
  std::unordered_map<uint32_t, Order::iterator> index_;
};

}  // namespace vbdkit::drivers::vhd
