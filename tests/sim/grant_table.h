// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A domain's memory and grant table as another domain reaches them: the hypervisor's checks on a
// version-1 grant entry (<xen/grant_table.h>: GTF_*, GNTST_*), and the guest's own side of it. The
// object is shared within a process; entries and pins are atomic, so any thread may use it.
#pragma once

#include <cstdint>

#include "base/fd.h"
#include "base/result.h"
#include "tests/sim/layout.h"
#include "tests/sim/memory.h"
#include "tests/sim/xen_abi.h"

namespace vbdkit::sim {

class Domain {
 public:
  // The two memfds as the broker hands them out.
  static Result<Domain> map(DomId id, Fd memory, Fd table);
  static size_t table_size(uint32_t entries) {
    return kGrantEntriesOffset + entries * (sizeof(grant_entry_v1_t) + sizeof(uint32_t));
  }

  DomId id() const { return id_; }
  uint32_t uid() const { return header().uid; }
  uint32_t pages() const { return header().pages; }
  uint32_t entries() const { return header().entries; }
  bool dying() const { return header().dying.load(std::memory_order_acquire) != 0; }
  void set_dying() { header().dying.store(1, std::memory_order_release); }

  const Fd& memory_fd() const { return memory_fd_; }
  std::byte* page(Gfn gfn) const { return memory_.data() + size_t{gfn} * kPageSize; }

  // The hypervisor's side. A pin holds a grant for one mapping or one copy by domain `user`.
  struct Pin {
    int16_t status;  // GNTST_*
    Gfn frame;       // where status is GNTST_okay
  };
  Pin pin(GrantRef ref, DomId user, bool writable);
  void unpin(GrantRef ref, bool writable);
  uint32_t pins(GrantRef ref) const;  // readers + writers
  // Puts the pin count right after a process died between recording and pinning.
  void set_pins(GrantRef ref, uint32_t readers, uint32_t writers);

  // The domain's own side.
  void grant(GrantRef ref, DomId user, Gfn frame, bool writable);
  // False where somebody still maps or copies it.
  bool end_access(GrantRef ref);
  grant_entry_v1_t entry(GrantRef ref) const;
  // Writes an entry as it stands, for hostile guests.
  void set_entry(GrantRef ref, const grant_entry_v1_t& entry);

 private:
  Domain(DomId id, Fd memory_fd, Mapping memory, Mapping table)
      : id_(id),
        memory_fd_(std::move(memory_fd)),
        memory_(std::move(memory)),
        table_(std::move(table)) {}

  GrantTable& header() const { return *table_.as<GrantTable>(); }
  // The two 32-bit words of an entry: flags and domid; frame.
  std::atomic<uint32_t>& flags_word(GrantRef ref) const;
  std::atomic<uint32_t>& frame_word(GrantRef ref) const;
  std::atomic<uint32_t>& pin_word(GrantRef ref) const;
  void settle_flags(GrantRef ref);

  DomId id_ = 0;
  Fd memory_fd_;
  Mapping memory_;
  Mapping table_;
};

}  // namespace vbdkit::sim
