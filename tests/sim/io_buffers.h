// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A fixed pool of guest buffers for requests in flight, with a grant ref for every page. Granted
// for good where persistent; else granted as a request starts and revoked as it ends, as blkfront
// does. One thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "tests/sim/guest.h"
#include "tests/sim/ring_queue.h"

namespace vbdkit::sim {

class IoBuffers {
 public:
  static Result<std::unique_ptr<IoBuffers>> create(Guest& guest, uint32_t buffers,
                                                   uint32_t pages_each, bool persistent);
  // Gives the pages back unless somebody still maps one.
  ~IoBuffers();
  IoBuffers(const IoBuffers&) = delete;
  IoBuffers& operator=(const IoBuffers&) = delete;

  uint32_t pages_each() const { return pages_each_; }
  std::byte* page(uint32_t buffer, uint32_t index) const {
    return pages_.data + (size_t{buffer} * pages_each_ + index) * kPageSize;
  }
  GrantRef ref(uint32_t buffer, uint32_t index) const {
    return refs_[size_t{buffer} * pages_each_ + index];
  }

  // Lets the backend at the first `pages` pages; `device_writes`: for a read request.
  void begin(uint32_t buffer, uint32_t pages, bool device_writes);
  // Ends that; false where the backend still has a page it has answered for.
  bool end(uint32_t buffer, uint32_t pages);

 private:
  IoBuffers(Guest& guest, Pages pages, uint32_t pages_each, bool persistent)
      : guest_(guest), pages_(pages), pages_each_(pages_each), persistent_(persistent) {}

  Guest& guest_;
  Pages pages_;
  uint32_t pages_each_;
  bool persistent_;
  std::vector<GrantRef> refs_;
};

}  // namespace vbdkit::sim
