// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/xen/grant_table.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <string>

namespace vbdkit::xen {

void GrantMapping::reset() {
  if (GrantTable* owner = std::exchange(owner_, nullptr))
    owner->unmap(std::exchange(address_, nullptr), std::exchange(pages_, 0));
}

void GrantTable::library_message(xentoollog_logger* self, xentoollog_level, int errnoval,
                                 const char* context, const char* format, va_list args) {
  auto* mine = reinterpret_cast<LibraryLog*>(self);
  char text[256];
  vsnprintf(text, sizeof text, format, args);
  // What failed and for whom is in the Error our caller gets; this is the library's detail.
  mine->log->limited(mine->limit, LogLevel::kDebug, "%s: %s%s%s", context ? context : "xen", text,
                     errnoval >= 0 ? ": " : "", errnoval >= 0 ? strerror(errnoval) : "");
}

GrantTable::GrantTable(const Logger& log)
    : log_(log), library_log_{{library_message, nullptr, nullptr}, &log, RateLimit{}} {}

Result<std::unique_ptr<GrantTable>> GrantTable::open(const Logger& log) {
  std::unique_ptr<GrantTable> table(new GrantTable(log));
  table->handle_ = xengnttab_open(&table->library_log_.vtable, 0);
  if (!table->handle_) return Error::from_errno(errno, "grant table: open the device");
  return table;
}

GrantTable::~GrantTable() {
  if (handle_) xengnttab_close(handle_);
}

Result<GrantMapping> GrantTable::map(DomId domid, std::span<const grant_ref_t> refs,
                                     bool writable) {
  auto count = static_cast<uint32_t>(refs.size());
  // The library takes a pointer to non-const and reads only.
  void* address =
      xengnttab_map_domain_grant_refs(handle_, count, domid, const_cast<grant_ref_t*>(refs.data()),
                                      writable ? PROT_READ | PROT_WRITE : PROT_READ);
  if (!address)
    return Error::from_errno(errno, "grant table: map " + std::to_string(count) +
                                        " pages from ref " + std::to_string(refs.front()) +
                                        " of domain " + std::to_string(domid));
  mapped_pages_ += count;
  return GrantMapping(this, address, count);
}

void GrantTable::unmap(void* address, uint32_t pages) {
  mapped_pages_ -= pages;
  if (xengnttab_unmap(handle_, address, pages) != 0)
    log_.limited(limit_, LogLevel::kError, "grant table: unmap %u pages: %s", pages,
                 strerror(errno));
}

Result<void> GrantTable::copy(std::span<CopySegment> operations) {
  if (xengnttab_grant_copy(handle_, static_cast<uint32_t>(operations.size()), operations.data()) !=
      0)
    return Error::from_errno(
        errno, "grant table: copy " + std::to_string(operations.size()) + " segments");
  return {};
}

}  // namespace vbdkit::xen
