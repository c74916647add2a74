// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/io_buffers.h"

namespace vbdkit::sim {

Result<std::unique_ptr<IoBuffers>> IoBuffers::create(Guest& guest, uint32_t buffers,
                                                     uint32_t pages_each, bool persistent) {
  VBDKIT_ASSIGN(const Pages pages, guest.alloc_pages(buffers * pages_each));
  std::unique_ptr<IoBuffers> pool(new IoBuffers(guest, pages, pages_each, persistent));
  for (uint32_t i = 0; i < pages.count; ++i) {
    VBDKIT_ASSIGN(const GrantRef ref, guest.alloc_ref());
    pool->refs_.push_back(ref);
    if (persistent) guest.grants().grant(ref, 0, pages.first + i, true);
  }
  return pool;
}

IoBuffers::~IoBuffers() {
  bool all = refs_.size() == pages_.count;
  for (const GrantRef ref : refs_) all = guest_.grants().end_access(ref) && all;
  if (!all) return;
  for (const GrantRef ref : refs_) guest_.free_ref(ref);
  guest_.free_pages(pages_);
}

void IoBuffers::begin(uint32_t buffer, uint32_t pages, bool device_writes) {
  if (persistent_) return;
  const uint32_t first = buffer * pages_each_;
  for (uint32_t i = first; i < first + pages; ++i)
    guest_.grants().grant(refs_[i], 0, pages_.first + i, device_writes);
}

bool IoBuffers::end(uint32_t buffer, uint32_t pages) {
  if (persistent_) return true;
  bool all = true;
  const uint32_t first = buffer * pages_each_;
  for (uint32_t i = first; i < first + pages; ++i)
    all = guest_.grants().end_access(refs_[i]) && all;
  return all;
}

}  // namespace vbdkit::sim
