// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/blkif/guest_pages.h"

#include <array>
#include <cstring>

#include "base/units.h"

namespace vbdkit::blkif {
namespace {

uint16_t offset_of(const blkif_request_segment& s) {
  return static_cast<uint16_t>(s.first_sect * kSectorSize);
}
uint16_t length_of(const blkif_request_segment& s) {
  return static_cast<uint16_t>((s.last_sect - s.first_sect + 1u) * kSectorSize);
}

// Appends, or lengthens the last element where the memory goes on.
void append(Transfer& t, char* base, size_t length) {
  if (t.iov_count > 0) {
    iovec& last = t.iov[t.iov_count - 1];
    if (static_cast<char*>(last.iov_base) + last.iov_len == base) {
      last.iov_len += length;
      return;
    }
  }
  t.iov[t.iov_count++] = {base, length};
}

}  // namespace

GuestPages::GuestPages(xen::GrantTable& grants, xen::DomId domid, PageAccess access,
                       const Logger& log, Stats& stats)
    : grants_(grants), domid_(domid), access_(access), log_(log), stats_(stats) {
  if (access == PageAccess::kPersistent) persistent_.emplace(grants, domid, stats.grant_maps);
}

void GuestPages::fetch_segments(std::span<const grant_ref_t> refs,
                                std::span<blkif_request_segment> to, Transfer& owner) {
  constexpr size_t kPerPage = xen::kPageSize / sizeof(blkif_request_segment);
  for (size_t i = 0; i * kPerPage < to.size(); ++i) {
    auto part = to.subspan(i * kPerPage, std::min(kPerPage, to.size() - i * kPerPage));
    if (persistent_) {
      const auto page = persistent_->get(refs[i]);
      if (page.data != nullptr) {
        memcpy(part.data(), page.data, part.size_bytes());
        // Judged from the copy only, whatever the guest writes meanwhile (XSA-155).
        asm volatile("" ::: "memory");
        persistent_->put(page.slot);
        continue;
      }
    }
    xen::CopySegment op{};
    op.source.foreign = {refs[i], 0, domid_};
    op.dest.virt = part.data();
    op.len = static_cast<uint16_t>(part.size_bytes());
    op.flags = GNTCOPY_source_gref;
    queue(op, owner);
  }
}

GuestPages::Attached GuestPages::attach(Transfer& t) {
  t.iov_count = 0;
  t.bounce = nullptr;
  t.bounce_bytes = 0;
  if (access_ == PageAccess::kMap) return attach_mapped(t);

  std::array<char*, kMaxIndirectSegments> page;
  for (uint32_t i = 0; i < t.segment_count; ++i) {
    page[i] = nullptr;
    t.slots[i] = Transfer::kCopied;
    if (persistent_) {
      const auto found = persistent_->get(t.segments[i].gref);
      page[i] = found.data;
      if (found.data != nullptr) t.slots[i] = found.slot;
    }
    if (page[i] == nullptr) t.bounce_bytes += length_of(t.segments[i]);
  }
  if (t.bounce_bytes > 0) {
    t.bounce = bounce_.take(t.bounce_bytes);
    if (t.bounce == nullptr) {
      detach(t);
      ++stats_.out_of_resources;
      return Attached::kNoRoom;
    }
  }
  char* copied = t.bounce;
  for (uint32_t i = 0; i < t.segment_count; ++i) {
    const size_t length = length_of(t.segments[i]);
    if (page[i] != nullptr) {
      append(t, page[i] + offset_of(t.segments[i]), length);
    } else {
      append(t, copied, length);
      copied += length;
    }
  }
  return Attached::kYes;
}

GuestPages::Attached GuestPages::attach_mapped(Transfer& t) {
  std::array<grant_ref_t, kMaxIndirectSegments> refs;
  for (uint32_t i = 0; i < t.segment_count; ++i) refs[i] = t.segments[i].gref;
  // A guest may grant what we only read as read-only.
  auto mapping = grants_.map(domid_, {refs.data(), t.segment_count}, t.to_guest);
  ++stats_.grant_maps;
  if (!mapping) {
    log_.limited(limit_, LogLevel::kWarning, "blkif: %s", mapping.error().message().c_str());
    return Attached::kBadGrant;
  }
  t.mapping = std::move(mapping).value();
  for (uint32_t i = 0; i < t.segment_count; ++i)
    append(t, t.mapping.data() + i * xen::kPageSize + offset_of(t.segments[i]),
           length_of(t.segments[i]));
  return Attached::kYes;
}

void GuestPages::queue_copies(Transfer& t) {
  if (t.bounce == nullptr) return;
  char* ours = t.bounce;
  for (uint32_t i = 0; i < t.segment_count; ++i) {
    if (t.slots[i] != Transfer::kCopied) continue;
    const blkif_request_segment& s = t.segments[i];
    xen::CopySegment op{};
    auto& guest = t.to_guest ? op.dest : op.source;
    auto& local = t.to_guest ? op.source : op.dest;
    guest.foreign = {s.gref, offset_of(s), domid_};
    local.virt = ours;
    op.len = length_of(s);
    op.flags = t.to_guest ? GNTCOPY_dest_gref : GNTCOPY_source_gref;
    queue(op, t);
    ours += op.len;
  }
}

void GuestPages::queue(const xen::CopySegment& op, Transfer& owner) {
  copies_.push_back(op);
  copy_owners_.push_back(&owner);
}

void GuestPages::run_copies() {
  if (copies_.empty()) return;
  ++stats_.grant_copies;
  auto done = grants_.copy(copies_);
  if (!done)
    log_.limited(limit_, LogLevel::kWarning, "blkif: domain %u: %s", domid_,
                 done.error().message().c_str());
  for (size_t i = 0; i < copies_.size(); ++i) {
    if (done && copies_[i].status == GNTST_okay) continue;
    copy_owners_[i]->failed = true;
    if (done)
      log_.limited(limit_, LogLevel::kWarning, "blkif: domain %u: copy of grant ref %u: status %d",
                   domid_,
                   copies_[i].flags == GNTCOPY_dest_gref ? copies_[i].dest.foreign.ref
                                                         : copies_[i].source.foreign.ref,
                   copies_[i].status);
  }
  copies_.clear();
  copy_owners_.clear();
}

void GuestPages::detach(Transfer& t) {
  if (access_ == PageAccess::kMap) {
    t.mapping.reset();
    return;
  }
  if (persistent_)
    for (uint32_t i = 0; i < t.segment_count; ++i)
      if (t.slots[i] != Transfer::kCopied) persistent_->put(t.slots[i]);
  if (t.bounce != nullptr) bounce_.give_back(std::exchange(t.bounce, nullptr), t.bounce_bytes);
}

}  // namespace vbdkit::blkif
