// SPDX-License-Identifier: LGPL-2.1-or-later
//
// GuestPages: brings the data of requests within reach of I/O, by persistent mapping, by mapping
// per request, or by copying through our own pages, and lets go of it again.
//
// Thread: its queue's reactor. Copies are gathered and done with one call for all requests of a
// turn; the status of each is looked at, and one bad grant fails its own request only (XSA-361,
// XSA-362, XSA-365).
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "backend/blkif/abi.h"
#include "backend/blkif/bounce_pool.h"
#include "backend/blkif/persistent_grants.h"
#include "backend/blkif/stats.h"
#include "backend/xen/grant_table.h"
#include "base/log.h"

namespace vbdkit::blkif {

enum class PageAccess { kPersistent, kMap, kCopy };

// One request's data. The arrays have room for as many elements as there are segments.
struct Transfer {
  bool to_guest = false;  // a read
  bool failed = false;    // a copy was refused
  uint32_t segment_count = 0;
  uint32_t iov_count = 0;
  const blkif_request_segment* segments = nullptr;
  iovec* iov = nullptr;
  uint32_t* slots = nullptr;  // of PersistentGrants, or kCopied
  char* bounce = nullptr;     // the copied segments, one after the other
  uint64_t bounce_bytes = 0;
  xen::GrantMapping mapping;

  static constexpr uint32_t kCopied = UINT32_MAX;
};

class GuestPages {
 public:
  GuestPages(xen::GrantTable& grants, xen::DomId domid, PageAccess access, const Logger& log,
             Stats& stats);

  // Fetches the segments of an indirect request into `to`; some may be there only after
  // run_copies().
  void fetch_segments(std::span<const grant_ref_t> refs, std::span<blkif_request_segment> to,
                      Transfer& owner);

  enum class Attached { kYes, kNoRoom, kBadGrant };
  // Fills in t.iov. kNoRoom: try again when another request has been detached.
  Attached attach(Transfer& t);
  // Queues what has to be copied before a write, or after a read.
  void queue_copies(Transfer& t);
  // Does what is queued; a transfer of which anything could not be copied is marked as failed.
  void run_copies();
  void detach(Transfer& t);

  // Memory that only an earlier load needed goes back to the system; call while idle.
  void trim() { bounce_.trim(); }
  bool trimmable() const { return bounce_.touched(); }

 private:
  Attached attach_mapped(Transfer& t);
  void queue(const xen::CopySegment& op, Transfer& owner);

  xen::GrantTable& grants_;
  const xen::DomId domid_;
  const PageAccess access_;
  const Logger& log_;
  RateLimit limit_;
  Stats& stats_;
  std::optional<PersistentGrants> persistent_;
  BouncePool bounce_;
  std::vector<xen::CopySegment> copies_;
  std::vector<Transfer*> copy_owners_;  // of each of copies_
};

}  // namespace vbdkit::blkif
