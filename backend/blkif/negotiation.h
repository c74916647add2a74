// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a frontend has written about its rings (xen/io/blkif.h "Frontend XenBus Nodes"), checked
// against what it was offered. Everything here is a guest's to write: anything that is not exactly
// a number in range is an error, and nothing is sized by it before it was capped.
#pragma once

#include <string>
#include <vector>

#include "backend/blkif/abi.h"
#include "backend/blkif/features.h"
#include "backend/xen/xenstore.h"
#include "base/result.h"

namespace vbdkit::blkif {

struct RingOffer {
  std::vector<grant_ref_t> refs;
  evtchn_port_t event_channel = 0;

  friend bool operator==(const RingOffer&, const RingOffer&) = default;
};

struct FrontendOffer {
  const SlotLayout* layout = nullptr;
  bool persistent = false;
  std::vector<RingOffer> rings;  // one for each queue

  friend bool operator==(const FrontendOffer&, const FrontendOffer&) = default;
};

[[gnu::cold]] Result<FrontendOffer> read_offer(const xen::StoreView& store,
                                               const std::string& frontend, const Limits& limits);

}  // namespace vbdkit::blkif
