// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/grant_mapper.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

namespace vbdkit::sim {

int GrantMapper::pin(const Grant& grant, bool writable, std::vector<Pinned>& pinned) {
  auto domain = connection_->domain(grant.domid);
  if (!domain) return EINVAL;
  auto record = connection_->take_record();
  if (!record) return ENOMEM;
  auto& word = connection_->ledger().maps[*record];
  word.store(make_record(kRecordPinning, writable, (*domain)->uid(), grant.ref));
  const Domain::Pin result = (*domain)->pin(grant.ref, connection_->domid(), writable);
  if (result.status != GNTST_okay) {
    connection_->give_back_record(*record);
    return EINVAL;
  }
  word.store(make_record(kRecordHeld, writable, (*domain)->uid(), grant.ref));
  pinned.push_back({std::move(*domain), grant.ref, *record, result.frame});
  return 0;
}

void GrantMapper::unpin(const std::vector<Pinned>& pinned, bool writable) {
  for (const auto& p : pinned) {
    auto& word = connection_->ledger().maps[p.record];
    word.store(make_record(kRecordPinning, writable, p.domain->uid(), p.ref));
    p.domain->unpin(p.ref, writable);
    connection_->give_back_record(p.record);
  }
}

Result<void*> GrantMapper::map(std::span<const Grant> grants, int prot, UnmapNotify notify) {
  Counters& counters = connection_->counters();
  counters.map_calls.fetch_add(1, std::memory_order_relaxed);
  if (grants.empty() || grants.size() > kMaxMappedGrants)
    return Error::from_errno(EINVAL, "simxen: map grants");
  const bool writable = (prot & PROT_WRITE) != 0;
  const size_t size = grants.size() * kPageSize;
  std::vector<Pinned> pinned;
  pinned.reserve(grants.size());
  int error = 0;
  // Every grant of the batch is tried even after a bad one, as the hypercall does.
  for (const auto& grant : grants) {
    const int e = pin(grant, writable, pinned);
    if (e != 0) {
      error = e;
      counters.map_failures.fetch_add(1, std::memory_order_relaxed);
    }
  }
  void* start = MAP_FAILED;
  if (error == 0) {
    start = ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) error = errno;
  }
  for (size_t i = 0; error == 0 && i < pinned.size();) {
    size_t run = 1;
    while (i + run < pinned.size() && pinned[i + run].domain == pinned[i].domain &&
           pinned[i + run].frame == pinned[i].frame + run)
      ++run;
    // Populated at once: gntdev leaves no page fault behind for the backend to take.
    if (::mmap(static_cast<std::byte*>(start) + i * kPageSize, run * kPageSize, prot,
               MAP_SHARED | MAP_FIXED | MAP_POPULATE, pinned[i].domain->memory_fd().get(),
               static_cast<off_t>(size_t{pinned[i].frame} * kPageSize)) == MAP_FAILED)
      error = errno;
    i += run;
  }
  uint32_t cookie = kNone;
  if (error == 0 && (notify.offset < size || notify.port != kNone)) {
    const size_t page = notify.offset < size ? notify.offset / kPageSize : 0;
    auto reply = connection_->call(
        Op::kUnmapNotify,
        {pinned[page].domain->uid(), pinned[page].frame,
         notify.offset < size ? uint32_t(notify.offset % kPageSize) : kNone, notify.port});
    if (reply)
      cookie = reply->reply.value[0];
    else
      error = reply.error().sys_errno();
  }
  if (error != 0) {
    if (start != MAP_FAILED) ::munmap(start, size);
    unpin(pinned, writable);
    return Error::from_errno(error, "simxen: map grants");
  }
  counters.maps.fetch_add(grants.size(), std::memory_order_relaxed);
  const std::lock_guard lock(lock_);
  mapped_.emplace(start, Mapped{writable, cookie, std::move(pinned)});
  return start;
}

int GrantMapper::unmap(void* start, uint32_t count) {
  Counters& counters = connection_->counters();
  counters.unmap_calls.fetch_add(1, std::memory_order_relaxed);
  Mapped mapped;
  {
    const std::lock_guard lock(lock_);
    const auto it = mapped_.find(start);
    if (it == mapped_.end() || it->second.grants.size() != count) return EINVAL;
    mapped = std::move(it->second);
    mapped_.erase(it);
  }
  if (mapped.notify_cookie != kNone) {
    auto fired = connection_->call(Op::kUnmapNotifyFire, {mapped.notify_cookie});
    if (!fired) return fired.error().sys_errno();
  }
  ::munmap(start, count * kPageSize);
  unpin(mapped.grants, mapped.writable);
  counters.unmaps.fetch_add(count, std::memory_order_relaxed);
  return 0;
}

int16_t GrantMapper::copy(const CopySide& from, const CopySide& to, uint16_t size) {
  ThreadSlot& slot = connection_->thread_slot();
  // Pins one side for the time of the copy.
  struct Side {
    std::shared_ptr<Domain> domain;
    std::atomic<GrantRecord>* record = nullptr;
    GrantRef ref = 0;
    bool writable = false;
    int16_t status = GNTST_okay;
    std::byte* data = nullptr;

    Side(Connection& connection, std::atomic<GrantRecord>& ledger, const CopySide& side, bool write)
        : writable(write) {
      if (!side.foreign) {
        data = static_cast<std::byte*>(side.local);
        return;
      }
      auto found = connection.domain(side.grant.domid);
      if (!found) {
        status = GNTST_bad_domain;
        return;
      }
      ref = side.grant.ref;
      ledger.store(make_record(kRecordPinning, write, (*found)->uid(), ref));
      const Domain::Pin pinned = (*found)->pin(ref, connection.domid(), write);
      status = pinned.status;
      if (status != GNTST_okay) {
        ledger.store(make_record(kRecordFree, false, 0, 0));
        return;
      }
      record = &ledger;
      domain = std::move(*found);
      ledger.store(make_record(kRecordHeld, write, domain->uid(), ref));
      data = domain->page(pinned.frame) + side.offset;
    }
    ~Side() {
      if (record == nullptr) return;
      record->store(make_record(kRecordPinning, writable, domain->uid(), ref));
      domain->unpin(ref, writable);
      record->store(make_record(kRecordFree, false, 0, 0));
    }
    Side(const Side&) = delete;
    Side& operator=(const Side&) = delete;
  };
  const Side source(*connection_, slot.copying[0], from, false);
  if (source.status != GNTST_okay) return source.status;
  const Side dest(*connection_, slot.copying[1], to, true);
  if (dest.status != GNTST_okay) return dest.status;
  std::memcpy(dest.data, source.data, size);
  return GNTST_okay;
}

}  // namespace vbdkit::sim
