// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/guest.h"

#include <algorithm>
#include <cstring>

namespace vbdkit::sim {

Result<std::unique_ptr<Guest>> Guest::create(const std::string& socket_path, Dom0Store& dom0,
                                             const Options& options) {
  DomId domid = 0;
  {
    VBDKIT_ASSIGN(auto toolstack, Connection::open(socket_path, 0));
    VBDKIT_ASSIGN(auto reply,
                  toolstack->call(Op::kDomCreate, {0, options.pages, options.grant_entries}));
    domid = static_cast<DomId>(reply.reply.value[0]);
  }
  VBDKIT_ASSIGN(auto connection, Connection::open(socket_path, domid));
  VBDKIT_ASSIGN(auto domain, connection->domain(domid));
  std::unique_ptr<Guest> guest(new Guest(std::move(connection), std::move(domain)));
  // As a domain builder does: the store page, its reserved grant, and a channel for xenstored.
  VBDKIT_ASSIGN(Pages store_page, guest->alloc_pages(1));
  guest->domain_->grant(GNTTAB_RESERVED_XENSTORE, 0, store_page.first, true);
  VBDKIT_ASSIGN(guest->store_events_, guest->open_events());
  VBDKIT_ASSIGN(EvtPort port, guest->store_events_->bind_unbound(0));
  // What a guest reads and writes without leave: its own directory, and in it these.
  const std::string path = guest->path();
  VBDKIT_TRY(dom0.write(path, ""));
  VBDKIT_TRY(dom0.set_permissions(path, 0, domid, Store::kNoTransaction));
  for (const char* own : {"/device", "/control", "/data", "/error"}) {
    VBDKIT_TRY(dom0.write(path + own, ""));
    VBDKIT_TRY(dom0.set_permissions(path + own, domid, domid, Store::kNoTransaction));
  }
  VBDKIT_TRY(dom0.write(path + "/domid", std::to_string(domid)));
  VBDKIT_TRY(dom0.set_permissions(path + "/domid", 0, domid, Store::kNoTransaction));
  VBDKIT_TRY(dom0.introduce(domid, store_page.first, port));
  guest->store_ = std::make_unique<StoreRing>(store_page.data, *guest->store_events_, port);
  return guest;
}

Result<Pages> Guest::alloc_pages(uint32_t count) {
  const auto reusable =
      std::ranges::find_if(free_pages_, [&](const Pages& p) { return p.count == count; });
  Pages pages;
  if (reusable != free_pages_.end()) {
    pages = *reusable;
    free_pages_.erase(reusable);
  } else {
    if (count > domain_->pages() - next_page_)
      return Error(ErrorKind::kNoSpace, "guest: out of memory");
    pages = {next_page_, count, domain_->page(next_page_)};
    next_page_ += count;
  }
  std::memset(pages.data, 0, size_t{count} * kPageSize);
  return pages;
}

void Guest::free_pages(const Pages& pages) { free_pages_.push_back(pages); }

Result<GrantRef> Guest::alloc_ref() {
  if (!free_refs_.empty()) {
    const GrantRef ref = free_refs_.back();
    free_refs_.pop_back();
    return ref;
  }
  if (next_ref_ == domain_->entries())
    return Error(ErrorKind::kNoSpace, "guest: the grant table is full");
  return next_ref_++;
}

Result<GrantRef> Guest::grant_page(Gfn gfn, bool writable) {
  VBDKIT_ASSIGN(GrantRef ref, alloc_ref());
  domain_->grant(ref, 0, gfn, writable);
  return ref;
}

}  // namespace vbdkit::sim
