// SPDX-License-Identifier: LGPL-2.1-or-later
//
// PersistentGrants: the guest's pages that stay mapped between requests ("feature-persistent"),
// found by grant ref, bounded in number. A page that does not get a place is copied instead, so the
// bound costs speed and never correctness. Each page is a mapping of its own, so that each can go.
//
// Thread: its queue's reactor. Everything is unmapped on destruction, whatever path led there
// (XSA-371). A ref twice in one request, or in several, is one mapping with several users.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/blkif/stats.h"
#include "backend/xen/grant_table.h"

namespace vbdkit::blkif {

class PersistentGrants {
 public:
  // Linux' blkback keeps as many per ring: 32 slots of 32 segments, and the indirect pages.
  static constexpr size_t kDefaultCapacity = 1056;

  // `maps` counts the map calls.
  PersistentGrants(xen::GrantTable& grants, xen::DomId domid, Counter& maps,
                   size_t capacity = kDefaultCapacity);

  struct Page {
    char* data = nullptr;  // null: not mapped, and it is better to copy
    uint32_t slot = 0;     // for put()
  };
  // Finds or maps the page and keeps it from being evicted until put().
  Page get(grant_ref_t ref);
  void put(uint32_t slot) { --entries_[slot].users; }

  size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    xen::GrantMapping mapping;
    grant_ref_t ref = 0;
    uint32_t users = 0;
    uint64_t last_use = 0;  // in lookups
  };
  static constexpr uint16_t kEmpty = 0xffff;

  size_t home(grant_ref_t ref) const { return (ref * 2654435761u) >> shift_; }
  size_t find(grant_ref_t ref) const;
  void erase_index(size_t at);
  // An entry to replace, or size() where none should be.
  uint32_t find_victim();

  xen::GrantTable& grants_;
  const xen::DomId domid_;
  Counter& maps_;
  const size_t capacity_;
  unsigned shift_;
  std::vector<Entry> entries_;
  std::vector<uint16_t> index_;  // open addressing, linear probing: entry numbers; a power of two
  size_t mask_;                  // of the index
  uint64_t lookups_ = 0;
  uint32_t hand_ = 0;  // where the search for a victim goes on
};

}  // namespace vbdkit::blkif
