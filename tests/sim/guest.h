// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A simulated guest, living in the test's own process: its memory, its grant table, its xenstore
// ring and any number of event-channel handles. Allocation and the store belong to one thread; what
// has been allocated may be used by others.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "tests/sim/connection.h"
#include "tests/sim/event_channels.h"
#include "tests/sim/store.h"

namespace vbdkit::sim {

// Pages that lie side by side in the guest, and therefore here too.
struct Pages {
  Gfn first = 0;
  uint32_t count = 0;
  std::byte* data = nullptr;
};

class Guest {
 public:
  struct Options {
    uint32_t pages = 65536;  // 256 MiB, used as touched
    uint32_t grant_entries = 32768;
  };
  // Makes the domain, and tells xenstored of it. World::create_guest() is the usual way.
  static Result<std::unique_ptr<Guest>> create(const std::string& socket_path, Dom0Store& dom0,
                                               const Options& options);

  DomId domid() const { return connection_->domid(); }
  // "/local/domain/N"
  std::string path() const { return "/local/domain/" + std::to_string(domid()); }
  StoreRing& store() { return *store_; }
  Counters& counters() const { return connection_->counters(); }
  Result<std::unique_ptr<EventChannels>> open_events() { return EventChannels::open(connection_); }

  // An error where memory or the grant table is full.
  Result<Pages> alloc_pages(uint32_t count);
  void free_pages(const Pages& pages);
  std::byte* page(Gfn gfn) const { return domain_->page(gfn); }

  Result<GrantRef> alloc_ref();
  void free_ref(GrantRef ref) { free_refs_.push_back(ref); }
  // The grant table itself: grant(), end_access(), entry(), set_entry().
  Domain& grants() { return *domain_; }
  // Grants domain 0 a page under a new ref.
  Result<GrantRef> grant_page(Gfn gfn, bool writable);

 private:
  Guest(std::shared_ptr<Connection> connection, std::shared_ptr<Domain> domain)
      : connection_(std::move(connection)), domain_(std::move(domain)) {}

  std::shared_ptr<Connection> connection_;
  std::shared_ptr<Domain> domain_;
  std::unique_ptr<EventChannels> store_events_;
  std::unique_ptr<StoreRing> store_;
  Gfn next_page_ = 1;  // page 0 stays unused, so that a forgotten gfn is seen
  std::vector<Pages> free_pages_;
  GrantRef next_ref_ = 8;  // GNTTAB_NR_RESERVED_ENTRIES
  std::vector<GrantRef> free_refs_;
};

}  // namespace vbdkit::sim
