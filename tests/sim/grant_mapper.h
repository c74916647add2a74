// SPDX-License-Identifier: LGPL-2.1-or-later
//
// An open grant device: maps and copies other domains' granted pages, with Xen's checks. Mappings
// outlive it, as they do the device's descriptor, and end with the process. Any thread; behaviour
// after Linux drivers/xen/gntdev.c.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/result.h"
#include "tests/sim/connection.h"

namespace vbdkit::sim {

// What a mapping's end tells the other side, however it ends.
struct UnmapNotify {
  uint32_t offset = kNone;  // a byte of the mapping to clear
  EvtPort port = kNone;     // a port to notify
};

class GrantMapper {
 public:
  explicit GrantMapper(std::shared_ptr<Connection> connection)
      : connection_(std::move(connection)) {}
  GrantMapper(const GrantMapper&) = delete;
  GrantMapper& operator=(const GrantMapper&) = delete;

  struct Grant {
    DomId domid;
    GrantRef ref;
  };
  // All or nothing: gntdev undoes a batch of which one grant is bad, and says EINVAL.
  Result<void*> map(std::span<const Grant> grants, int prot, UnmapNotify notify = {});
  // An errno; `start` and `count` must be those of one map.
  int unmap(void* start, uint32_t count);

  struct CopySide {
    bool foreign = false;
    void* local = nullptr;  // where not foreign
    Grant grant{};          // where foreign
    uint16_t offset = 0;
  };
  // GNTST_*. One side at least is foreign, and neither crosses a page (gntdev refuses it before).
  int16_t copy(const CopySide& from, const CopySide& to, uint16_t size);

 private:
  struct Pinned {
    std::shared_ptr<Domain> domain;
    GrantRef ref;
    uint32_t record;  // in the ledger
    Gfn frame;
  };
  struct Mapped {
    bool writable;
    uint32_t notify_cookie;
    std::vector<Pinned> grants;
  };
  int pin(const Grant& grant, bool writable, std::vector<Pinned>& pinned);
  void unpin(const std::vector<Pinned>& pinned, bool writable);

  std::shared_ptr<Connection> connection_;
  std::mutex lock_;
  std::map<void*, Mapped> mapped_;  // guarded by lock_
};

}  // namespace vbdkit::sim
