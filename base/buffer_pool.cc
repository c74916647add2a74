// SPDX-License-Identifier: LGPL-2.1-or-later
#include "base/buffer_pool.h"

#include <sys/mman.h>

#include <bit>

namespace vbdkit {

BufferPool::~BufferPool() { trim(); }

BufferPool::Buffer BufferPool::take(size_t bytes) {
  const auto order = static_cast<unsigned>(std::bit_width((bytes - 1) >> 12));
  if (free_[order] == nullptr && !grow(order)) return {};
  FreeBuffer* buffer = free_[order];
  free_[order] = buffer->next;
  if (order <= kMaxSlabOrder)
    ++slab_buffers_taken_;
  else
    cached_large_ -= bytes_of(order);
  return {*this, reinterpret_cast<uint8_t*>(buffer), order};
}

void BufferPool::give(uint8_t* data, unsigned order) {
  if (order <= kMaxSlabOrder) {
    --slab_buffers_taken_;
    push(data, order);
  } else if (cached_large_ + bytes_of(order) > kMaxCachedLarge) {
    unmap(data, bytes_of(order));
  } else {
    cached_large_ += bytes_of(order);
    push(data, order);
  }
}

void BufferPool::push(uint8_t* data, unsigned order) {
  auto* buffer = reinterpret_cast<FreeBuffer*>(data);
  buffer->next = free_[order];
  free_[order] = buffer;
}

bool BufferPool::grow(unsigned order) {
  const bool slab = order <= kMaxSlabOrder;
  uint8_t* const start = map(slab ? kSlabBytes : bytes_of(order));
  if (start == nullptr) return false;
  if (!slab) {
    cached_large_ += bytes_of(order);
    push(start, order);
    return true;
  }
  slabs_.push_back(start);
  // Pushing touches each buffer's first page: hence small slabs. The lowest address goes out first.
  for (size_t at = kSlabBytes; at > 0; at -= bytes_of(order))
    push(start + at - bytes_of(order), order);
  return true;
}

void BufferPool::trim() {
  for (unsigned order = kMaxSlabOrder + 1; order < kOrders; ++order) {
    while (free_[order] != nullptr) {
      FreeBuffer* buffer = free_[order];
      free_[order] = buffer->next;
      cached_large_ -= bytes_of(order);
      unmap(buffer, bytes_of(order));
    }
  }
  if (slab_buffers_taken_ != 0) return;
  for (unsigned order = 0; order <= kMaxSlabOrder; ++order) free_[order] = nullptr;
  for (uint8_t* slab : slabs_) unmap(slab, kSlabBytes);
  slabs_.clear();
  slabs_.shrink_to_fit();
}

uint8_t* BufferPool::map(size_t bytes) {
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  mapped_ += bytes;
  return static_cast<uint8_t*>(p);
}

void BufferPool::unmap(void* data, size_t bytes) {
  mapped_ -= bytes;
  ::munmap(data, bytes);
}

}  // namespace vbdkit
