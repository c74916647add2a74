// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/blkif/bounce_pool.h"

#include <bit>

#include "base/units.h"

namespace vbdkit::blkif {
namespace {

unsigned order_of(uint64_t bytes) {
  const uint64_t pages = align_up(bytes, xen::kPageSize) / xen::kPageSize;
  return static_cast<unsigned>(std::bit_width(pages - 1));
}

}  // namespace

BouncePool::~BouncePool() {
  if (base_ != nullptr) munmap(base_, kPages * xen::kPageSize);
}

// At the first use: a disk whose guest offers persistent grants never needs it.
bool BouncePool::reserve() {
  void* p = mmap(nullptr, kPages * xen::kPageSize, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return false;
  base_ = static_cast<char*>(p);
  tables_ = std::make_unique<Tables>();
  tables_->free_order.fill(kNotFree);
  head_.fill(kNone);
  for (uint32_t block = kMaxBlocks; block-- > 0;)
    push(static_cast<uint16_t>(block << kMaxOrder), kMaxOrder);
  return true;
}

void BouncePool::push(uint16_t page, unsigned order) {
  Tables& t = *tables_;
  t.free_order[page] = static_cast<uint8_t>(order);
  t.prev[page] = kNone;
  t.next[page] = head_[order];
  if (head_[order] != kNone) t.prev[head_[order]] = page;
  head_[order] = page;
}

void BouncePool::unlink(uint16_t page, unsigned order) {
  Tables& t = *tables_;
  t.free_order[page] = kNotFree;
  if (t.prev[page] != kNone)
    t.next[t.prev[page]] = t.next[page];
  else
    head_[order] = t.next[page];
  if (t.next[page] != kNone) t.prev[t.next[page]] = t.prev[page];
}

char* BouncePool::take(uint64_t bytes) {
  if (base_ == nullptr && !reserve()) return nullptr;
  const unsigned wanted = order_of(bytes);
  unsigned order = wanted;
  while (order <= kMaxOrder && head_[order] == kNone) ++order;
  if (order > kMaxOrder) return nullptr;
  const uint16_t page = head_[order];
  unlink(page, order);
  while (order > wanted) {
    --order;
    push(static_cast<uint16_t>(page + (1u << order)), order);
  }
  pages_in_use_ += 1u << wanted;
  touched_ = true;
  return base_ + size_t{page} * xen::kPageSize;
}

void BouncePool::give_back(char* run, uint64_t bytes) {
  unsigned order = order_of(bytes);
  auto page = static_cast<uint16_t>(static_cast<size_t>(run - base_) / xen::kPageSize);
  pages_in_use_ -= 1u << order;
  while (order < kMaxOrder) {
    const auto buddy = static_cast<uint16_t>(page ^ (1u << order));
    if (tables_->free_order[buddy] != order) break;
    unlink(buddy, order);
    page &= static_cast<uint16_t>(~(1u << order));
    ++order;
  }
  push(page, order);
}

void BouncePool::trim() {
  if (!touched_ || !unused()) return;
  touched_ = false;
  madvise(base_, kPages * xen::kPageSize, MADV_DONTNEED);
}

}  // namespace vbdkit::blkif
