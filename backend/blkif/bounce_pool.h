// SPDX-License-Identifier: LGPL-2.1-or-later
//
// BouncePool: our own pages for data that is copied to and from a guest, in contiguous runs of up
// to one request's size, from a bounded piece of address space whose memory is used only as far as
// the load ever needed. A buddy allocator: constant time, no allocation beneath.
//
// Thread: its queue's reactor.
#pragma once

#include <sys/mman.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/xen/headers.h"
#include "base/result.h"

namespace vbdkit::blkif {

class BouncePool {
 public:
  static constexpr unsigned kMaxOrder = 8;    // 256 pages, the largest request
  static constexpr uint32_t kMaxBlocks = 16;  // of that size: 16 MiB in all
  static constexpr uint32_t kPages = kMaxBlocks << kMaxOrder;

  BouncePool() = default;
  ~BouncePool();
  BouncePool(const BouncePool&) = delete;
  BouncePool& operator=(const BouncePool&) = delete;

  // Room for `bytes` (not 0, at most 1 MiB), or null while too much is in use.
  char* take(uint64_t bytes);
  void give_back(char* run, uint64_t bytes);

  bool unused() const { return pages_in_use_ == 0; }
  bool touched() const { return touched_; }  // since the last trim()
  // Returns the memory to the system while nothing is in use.
  void trim();

 private:
  static constexpr uint16_t kNone = 0xffff;
  static constexpr uint8_t kNotFree = 0xff;
  static_assert(kPages < kNone);

  struct Tables {
    std::array<uint16_t, kPages> next;  // by first page of a free run
    std::array<uint16_t, kPages> prev;
    std::array<uint8_t, kPages> free_order;  // of the free run that starts here, or kNotFree
  };

  bool reserve();
  void push(uint16_t page, unsigned order);
  void unlink(uint16_t page, unsigned order);

  char* base_ = nullptr;
  std::unique_ptr<Tables> tables_;
  std::array<uint16_t, kMaxOrder + 1> head_;
  uint32_t pages_in_use_ = 0;
  bool touched_ = false;
};

}  // namespace vbdkit::blkif
