// SPDX-License-Identifier: LGPL-2.1-or-later
//
// TableCache: the block table of a VHD that nobody changes, read as it is needed, a page of 1024
// entries (2 GiB of disk at the usual block size) at a time. A chain of many large images so costs
// neither the reading of all tables at its start nor their memory. A page without any block is
// remembered as such for one bit.
// The reactor's thread. No load may be in flight when it is destroyed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "drivers/node.h"
#include "drivers/vhd/layout.h"

namespace vbdkit::drivers::vhd {

class TableCache {
 public:
  static constexpr uint32_t kPageEntries = 1024;
  static constexpr size_t kMaxPages = 16;  // kept in memory: 64 KiB

  // `offset`: of the table in the file, bytes.
  TableCache(Node& file, uint64_t offset, uint32_t blocks)
      : file_(file), offset_(offset), blocks_(blocks), empty_(pages()) {}

  // Puts the entries of [first, first + entries.size()) there, host order, and calls `done`, also
  // inside get().
  void get(uint32_t first, std::span<uint32_t> entries, std::function<void(int error)> done);

 private:
  struct Page {
    uint32_t number = 0;
    bool used = true;  // since the clock's hand passed
    alignas(kSectorSize) std::array<uint32_t, kPageEntries> entries;  // for direct I/O
  };
  struct Load {
    Request request;  // first: `done` gets the rest from it
    TableCache* cache = nullptr;
    iovec iov{};
    std::unique_ptr<Page> page;
    std::vector<std::function<void(int error)>> waiters;
  };

  uint32_t pages() const { return (blocks_ + kPageEntries - 1) / kPageEntries; }
  Page* find(uint32_t number);
  void load(uint32_t number, std::function<void(int error)> waiter);
  void loaded(Load& load, int error);
  void keep(std::unique_ptr<Page> page);

  Node& file_;
  const uint64_t offset_;
  const uint32_t blocks_;
  std::vector<bool> empty_;  // by page
  std::vector<std::unique_ptr<Page>> kept_;
  size_t hand_ = 0;
  std::unordered_map<uint32_t, std::unique_ptr<Load>> loads_;
};

}  // namespace vbdkit::drivers::vhd
