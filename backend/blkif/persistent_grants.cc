// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/blkif/persistent_grants.h"

#include <bit>

namespace vbdkit::blkif {
namespace {

// A victim has not been used for this many times the capacity in lookups: a guest that cycles
// through more pages than have a place would otherwise make every request unmap and map, which is
// dearer than copying what does not fit.
constexpr uint64_t kStaleTimesCapacity = 4;
constexpr unsigned kEntriesPerSearch = 8;

}  // namespace

PersistentGrants::PersistentGrants(xen::GrantTable& grants, xen::DomId domid, Counter& maps,
                                   size_t capacity)
    : grants_(grants), domid_(domid), maps_(maps), capacity_(capacity) {
  const size_t slots = std::bit_ceil(capacity * 2);
  shift_ = static_cast<unsigned>(32 - std::countr_zero(slots));
  index_.assign(slots, kEmpty);
  mask_ = slots - 1;
}

// The place of `ref` in the index, or the empty one where it would go.
size_t PersistentGrants::find(grant_ref_t ref) const {
  size_t at = home(ref);
  while (index_[at] != kEmpty && entries_[index_[at]].ref != ref) at = (at + 1) & mask_;
  return at;
}

// Closes the gap, so that probing needs no tombstones.
void PersistentGrants::erase_index(size_t at) {
  index_[at] = kEmpty;
  for (size_t next = (at + 1) & mask_; index_[next] != kEmpty; next = (next + 1) & mask_) {
    const size_t want = home(entries_[index_[next]].ref);
    // It may move into the gap unless its home lies behind the gap.
    if (((next - want) & mask_) < ((next - at) & mask_)) continue;
    index_[at] = index_[next];
    index_[next] = kEmpty;
    at = next;
  }
}

uint32_t PersistentGrants::find_victim() {
  for (unsigned i = 0; i < kEntriesPerSearch; ++i) {
    hand_ = (hand_ + 1) % static_cast<uint32_t>(entries_.size());
    const Entry& e = entries_[hand_];
    if (e.users == 0 && lookups_ - e.last_use > kStaleTimesCapacity * capacity_) return hand_;
  }
  return static_cast<uint32_t>(entries_.size());
}

PersistentGrants::Page PersistentGrants::get(grant_ref_t ref) {
  ++lookups_;
  size_t at = find(ref);
  if (index_[at] != kEmpty) {
    Entry& e = entries_[index_[at]];
    ++e.users;
    e.last_use = lookups_;
    return {e.mapping.data(), index_[at]};
  }
  const bool full = entries_.size() >= capacity_;
  const uint32_t slot = full ? find_victim() : static_cast<uint32_t>(entries_.size());
  if (full && slot == entries_.size()) return {};
  // Writable whatever the request does: a later one may read into the same page.
  ++maps_;
  auto mapping = grants_.map(domid_, {&ref, 1}, true);
  if (!mapping) return {};
  if (full) {
    erase_index(find(entries_[slot].ref));
    at = find(ref);
  } else {
    entries_.emplace_back();
  }
  entries_[slot] = Entry{std::move(mapping).value(), ref, 1, lookups_};
  index_[at] = static_cast<uint16_t>(slot);
  return {entries_[slot].mapping.data(), slot};
}

}  // namespace vbdkit::blkif
