// SPDX-License-Identifier: LGPL-2.1-or-later
//
// PageStore: pages of images in bounded memory that several processes share. There is no lock in
// it, so that a process may die at any moment: what is read proves itself. Each page has a checksum
// that depends on the image and the place that it belongs to, and is checked on a private copy.
// Whatever is torn, overwritten or left half done is not found, no more.
//
//     header    one page: what the file is, and the cursor (pages ever inserted)
//     index     buckets of 4 entries: 32 bits of the key's hash, the slot, the checksum
//     slots     4 KiB each; filled in turn, so that the oldest page goes first
//
// Only pages of storage that does not change may be shared. Trust: the file belongs to one user and
// is nobody else's to read or write; an instance of that user can put wrong pages into it.
// Any thread of one process at a time; the reading and writing itself needs no order between
// processes. Memory is taken as pages come.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/fd.h"
#include "base/log.h"
#include "base/result.h"

namespace vbdkit::drivers::cache {

inline constexpr uint64_t kPageSize = 4096;  // bytes
using Page = std::array<uint8_t, kPageSize>;

// Of an image: what its pages are known by.
struct ImageKey {
  uint64_t hash = 0;

  static ImageKey of(std::string_view identity);
  static ImageKey unique();  // shared with nobody
};

class PageStore {
 public:
  // One that other instances of this user open by the same name. The first one decides the size;
  // the last one removes the file.
  static Result<std::shared_ptr<PageStore>> open_shared(const std::string& directory,
                                                        const std::string& name, uint64_t size,
                                                        const Logger& log);
  static Result<std::shared_ptr<PageStore>> create_private(uint64_t size);
  ~PageStore();
  PageStore(const PageStore&) = delete;
  PageStore& operator=(const PageStore&) = delete;

  // False where it is not there; then `to` holds anything.
  bool find(ImageKey image, uint64_t page, Page& to) const;
  // Consecutive pages.
  void insert(ImageKey image, uint64_t first, std::span<const uint8_t> pages);
  // Only where no other process inserts the image's pages.
  void remove(ImageKey image, uint64_t page);

  uint64_t slots() const { return slots_; }

 private:
  static constexpr unsigned kWays = 4;
  struct Entry {
    uint64_t place;  // tag << 32 | slot; 0: empty
    uint64_t checksum;
  };
  using Bucket = Entry[kWays];
  struct Header;
  struct Address {
    uint64_t bucket;
    uint32_t tag;
    uint64_t seed;
  };

  PageStore() = default;
  Result<void> join(const std::string& path, uint64_t size, const Logger& log, bool& again);
  Result<void> initialise(uint64_t size);
  Result<void> map();
  Address address_of(ImageKey image, uint64_t page) const;
  void index(const Address& address, uint32_t slot, uint64_t checksum, uint64_t now);

  std::string path_;  // of a shared one
  Fd fd_;
  uint8_t* memory_ = nullptr;
  uint64_t length_ = 0;  // bytes mapped
  uint64_t slots_ = 0;
  uint64_t buckets_ = 0;
  Header* header_ = nullptr;
  Bucket* index_ = nullptr;
  uint64_t data_ = 0;  // offset of the slots
};

}  // namespace vbdkit::drivers::cache
