// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/vhd/bitmap_cache.h"

namespace vbdkit::drivers::vhd {

Bitmap* BitmapCache::find(uint32_t block) {
  const auto it = index_.find(block);
  if (it == index_.end() || (*it->second)->loading) return nullptr;
  order_.splice(order_.end(), order_, it->second);
  return it->second->get();
}

Bitmap& BitmapCache::add(uint32_t block) {
  trim();
  auto owned = std::make_unique<Bitmap>();
  Bitmap& bitmap = *owned;
  bitmap.cache = this;
  bitmap.block = block;
  bitmap.sectors.resize(bytes_ / kSectorSize);
  order_.push_back(std::move(owned));
  index_[block] = std::prev(order_.end());
  return bitmap;
}

Bitmap& BitmapCache::create(uint32_t block) { return add(block); }

void BitmapCache::load(uint32_t block, uint64_t file_offset, std::function<void(int error)> done) {
  if (const auto it = index_.find(block); it != index_.end()) {
    Bitmap& bitmap = **it->second;
    if (bitmap.loading)
      bitmap.waiters.push_back(std::move(done));
    else
      done(0);
    return;
  }
  Bitmap& bitmap = add(block);
  bitmap.loading = true;
  bitmap.waiters.push_back(std::move(done));
  bitmap.iov = {bitmap.bits(), bitmap.bytes()};
  bitmap.request.op = Op::kRead;
  bitmap.request.iov = &bitmap.iov;
  bitmap.request.iov_count = 1;
  bitmap.request.offset = file_offset;
  bitmap.request.length = bitmap.bytes();
  bitmap.request.done = [](Request& r, int error) {
    auto& b = *reinterpret_cast<Bitmap*>(&r);
    b.cache->loaded(b, error);
  };
  file_.submit(bitmap.request);
}

void BitmapCache::loaded(Bitmap& bitmap, int error) {
  const auto waiters = std::move(bitmap.waiters);
  bitmap.waiters.clear();
  bitmap.loading = false;
  if (error != 0) {
    const auto it = index_.find(bitmap.block);
    order_.erase(it->second);
    index_.erase(it);
  } else {
    bitmap.set = count_bits({bitmap.bits(), bitmap.bytes()}, bits_);
  }
  // Nobody may evict it before all waiters have seen it.
  if (error == 0) pin(bitmap);
  for (const auto& waiter : waiters) waiter(error);
  if (error == 0) unpin(bitmap);
}

void BitmapCache::unpin(Bitmap& bitmap) {
  if (--bitmap.pins == 0 && order_.size() > keep_) trim();
}

// From the one not used for longest; what must stay goes to the end, so that it is not met each
// time.
void BitmapCache::trim() {
  for (size_t looked = order_.size(); order_.size() >= keep_ && looked > 0; --looked) {
    const auto oldest = order_.begin();
    const Bitmap& bitmap = **oldest;
    if (bitmap.pins == 0 && !bitmap.dirty && !bitmap.loading) {
      index_.erase(bitmap.block);
      order_.erase(oldest);
    } else {
      order_.splice(order_.end(), order_, oldest);
    }
  }
}

}  // namespace vbdkit::drivers::vhd
