// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Page-aligned memory for the data of requests. Buffers come in powers of two from 4 KiB to 32 MiB
// and are used again last in, first out, so that a steady load runs in few, warm pages without
// allocating. trim() gives an idle server's memory back to the system. What may be taken at one
// time is bounded by the connections' limits, not here.
//
// Thread: one owner. Outlives its buffers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace vbdkit {

class BufferPool {
 public:
  class Buffer {
   public:
    Buffer() = default;
    Buffer(Buffer&& o) noexcept
        : pool_(std::exchange(o.pool_, nullptr)), data_(o.data_), order_(o.order_) {}
    Buffer& operator=(Buffer&& o) noexcept {
      if (this != &o) {
        reset();
        pool_ = std::exchange(o.pool_, nullptr);
        data_ = o.data_;
        order_ = o.order_;
      }
      return *this;
    }
    ~Buffer() { reset(); }

    explicit operator bool() const { return pool_ != nullptr; }
    uint8_t* data() const { return data_; }
    void reset() {
      if (pool_ != nullptr) std::exchange(pool_, nullptr)->give(data_, order_);
    }

   private:
    friend class BufferPool;
    Buffer(BufferPool& pool, uint8_t* data, unsigned order)
        : pool_(&pool), data_(data), order_(order) {}

    BufferPool* pool_ = nullptr;
    uint8_t* data_ = nullptr;
    unsigned order_ = 0;
  };

  static constexpr size_t kMaxBytes = size_t{32} << 20;

  BufferPool() = default;
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;
  ~BufferPool();

  // At least `bytes`, which is at most kMaxBytes. An empty Buffer where the system has no memory.
  Buffer take(size_t bytes);
  // Unmaps everything that is not taken.
  void trim();

  size_t mapped_bytes() const { return mapped_; }

 private:
  static constexpr unsigned kOrders = 14;       // 4 KiB << 0 … 4 KiB << 13
  static constexpr unsigned kMaxSlabOrder = 4;  // up to 64 KiB are cut from slabs
  static constexpr size_t kSlabBytes = size_t{64} << 10;
  static constexpr size_t kMaxCachedLarge = size_t{8} << 20;

  // Free buffers are chained through their first bytes.
  struct FreeBuffer {
    FreeBuffer* next;
  };

  static constexpr size_t bytes_of(unsigned order) { return size_t{4096} << order; }
  void give(uint8_t* data, unsigned order);
  void push(uint8_t* data, unsigned order);
  bool grow(unsigned order);
  uint8_t* map(size_t bytes);
  void unmap(void* data, size_t bytes);

  std::array<FreeBuffer*, kOrders> free_{};
  std::vector<uint8_t*> slabs_;
  size_t slab_buffers_taken_ = 0;
  size_t cached_large_ = 0;  // bytes
  size_t mapped_ = 0;        // bytes
};

}  // namespace vbdkit
