// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/grant_table.h"

namespace vbdkit::sim {
namespace {

// The first word of a v1 entry: flags in the low half, domid in the high half.
constexpr uint32_t flags_of(uint32_t word) { return word & 0xffff; }
constexpr DomId domid_of(uint32_t word) { return static_cast<DomId>(word >> 16); }
constexpr uint32_t kBusyFlags = GTF_reading | GTF_writing;

static_assert(sizeof(grant_entry_v1_t) == 8 && offsetof(grant_entry_v1_t, flags) == 0 &&
              offsetof(grant_entry_v1_t, domid) == 2 && offsetof(grant_entry_v1_t, frame) == 4);

}  // namespace

Result<Domain> Domain::map(DomId id, Fd memory, Fd table) {
  VBDKIT_ASSIGN(Mapping head, Mapping::map(table, kPageSize));
  const auto* header = head.as<GrantTable>();
  VBDKIT_ASSIGN(Mapping whole_table, Mapping::map(table, table_size(header->entries)));
  VBDKIT_ASSIGN(Mapping whole_memory, Mapping::map(memory, size_t{header->pages} * kPageSize));
  return Domain(id, std::move(memory), std::move(whole_memory), std::move(whole_table));
}

std::atomic<uint32_t>& Domain::flags_word(GrantRef ref) const {
  return table_.as<std::atomic<uint32_t>>(kGrantEntriesOffset)[2 * size_t{ref}];
}

std::atomic<uint32_t>& Domain::frame_word(GrantRef ref) const {
  return table_.as<std::atomic<uint32_t>>(kGrantEntriesOffset)[2 * size_t{ref} + 1];
}

std::atomic<uint32_t>& Domain::pin_word(GrantRef ref) const {
  return table_.as<std::atomic<uint32_t>>(kGrantEntriesOffset)[2 * size_t{entries()} + ref];
}

Domain::Pin Domain::pin(GrantRef ref, DomId user, bool writable) {
  if (dying()) return {GNTST_bad_domain, 0};
  if (ref >= entries()) return {GNTST_bad_gntref, 0};
  auto& flags = flags_word(ref);
  // The pin goes first: unpin clears the busy flags only while it sees no pin.
  pin_word(ref).fetch_add(writable ? kPinWriter : kPinReader);
  uint32_t seen = flags.load();
  int16_t status = GNTST_general_error;
  // Xen gives up on an entry that its guest keeps changing, too.
  for (int attempt = 0; attempt < 5; ++attempt) {
    if ((flags_of(seen) & (GTF_type_mask | GTF_sub_page)) != GTF_permit_access ||
        domid_of(seen) != user || (writable && (flags_of(seen) & GTF_readonly) != 0))
      break;
    const uint32_t busy = seen | GTF_reading | (writable ? uint32_t{GTF_writing} : 0);
    if (flags.compare_exchange_weak(seen, busy)) {
      status = GNTST_okay;
      break;
    }
  }
  const Gfn frame = frame_word(ref).load();
  if (status == GNTST_okay && frame < pages()) return {GNTST_okay, frame};
  unpin(ref, writable);
  return {status == GNTST_okay ? int16_t{GNTST_bad_page} : status, 0};
}

void Domain::unpin(GrantRef ref, bool writable) {
  pin_word(ref).fetch_sub(writable ? kPinWriter : kPinReader);
  settle_flags(ref);
}

// Makes GTF_reading and GTF_writing say what the pin word says. Runs again where another thread
// pinned meanwhile, so that whoever comes last leaves them right.
void Domain::settle_flags(GrantRef ref) {
  uint32_t before = pin_word(ref).load();
  for (;;) {
    const uint32_t wanted =
        before == 0 ? 0 : GTF_reading | (before >= kPinWriter ? uint32_t{GTF_writing} : 0);
    uint32_t seen = flags_word(ref).load();
    if ((seen & kBusyFlags) != wanted &&
        !flags_word(ref).compare_exchange_strong(seen, (seen & ~kBusyFlags) | wanted))
      continue;
    const uint32_t after = pin_word(ref).load();
    if (after == before) return;
    before = after;
  }
}

uint32_t Domain::pins(GrantRef ref) const {
  const uint32_t word = pin_word(ref).load();
  return (word & 0xffff) + (word >> 16);
}

void Domain::set_pins(GrantRef ref, uint32_t readers, uint32_t writers) {
  pin_word(ref).store(readers * kPinReader + writers * kPinWriter);
  settle_flags(ref);
}

void Domain::grant(GrantRef ref, DomId user, Gfn frame, bool writable) {
  frame_word(ref).store(frame, std::memory_order_relaxed);
  const uint32_t flags = GTF_permit_access | (writable ? 0U : uint32_t{GTF_readonly});
  flags_word(ref).store(flags | uint32_t{user} << 16, std::memory_order_release);
}

bool Domain::end_access(GrantRef ref) {
  uint32_t seen = flags_word(ref).load();
  do {
    if ((seen & kBusyFlags) != 0) return false;
  } while (!flags_word(ref).compare_exchange_weak(seen, 0));
  return true;
}

grant_entry_v1_t Domain::entry(GrantRef ref) const {
  const uint32_t word = flags_word(ref).load();
  grant_entry_v1_t entry{};
  entry.flags = static_cast<uint16_t>(flags_of(word));
  entry.domid = domid_of(word);
  entry.frame = frame_word(ref).load();
  return entry;
}

void Domain::set_entry(GrantRef ref, const grant_entry_v1_t& entry) {
  frame_word(ref).store(entry.frame);
  flags_word(ref).store(entry.flags | uint32_t{entry.domid} << 16);
}

}  // namespace vbdkit::sim
