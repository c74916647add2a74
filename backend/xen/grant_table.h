// SPDX-License-Identifier: LGPL-2.1-or-later
//
// GrantTable: access to pages that other domains granted us, by mapping or by copying.
//
// Thread: one handle per reactor, used on its thread. GrantMapping owns what it mapped and must not
// outlive its GrantTable. Nothing a guest passes can do more than make a call fail; what
// libxengnttab says about that goes through the rate limit of our log.
#pragma once

#include <memory>
#include <span>
#include <utility>

#include "backend/xen/headers.h"
#include "base/log.h"
#include "base/result.h"

namespace vbdkit::xen {

class GrantTable;

class GrantMapping {
 public:
  GrantMapping() = default;
  GrantMapping(GrantMapping&& o) noexcept
      : owner_(std::exchange(o.owner_, nullptr)),
        address_(std::exchange(o.address_, nullptr)),
        pages_(std::exchange(o.pages_, 0)) {}
  GrantMapping& operator=(GrantMapping&& o) noexcept {
    if (this != &o) {
      reset();
      owner_ = std::exchange(o.owner_, nullptr);
      address_ = std::exchange(o.address_, nullptr);
      pages_ = std::exchange(o.pages_, 0);
    }
    return *this;
  }
  GrantMapping(const GrantMapping&) = delete;
  GrantMapping& operator=(const GrantMapping&) = delete;
  ~GrantMapping() { reset(); }

  bool mapped() const { return address_ != nullptr; }
  char* data() const { return static_cast<char*>(address_); }
  uint32_t pages() const { return pages_; }
  void reset();

 private:
  friend class GrantTable;
  GrantMapping(GrantTable* owner, void* address, uint32_t pages)
      : owner_(owner), address_(address), pages_(pages) {}

  GrantTable* owner_ = nullptr;
  void* address_ = nullptr;
  uint32_t pages_ = 0;
};

using CopySegment = xengnttab_grant_copy_segment_t;

class GrantTable {
 public:
  [[gnu::cold]] static Result<std::unique_ptr<GrantTable>> open(const Logger& log);
  ~GrantTable();
  GrantTable(const GrantTable&) = delete;
  GrantTable& operator=(const GrantTable&) = delete;

  // One contiguous range, all refs or none.
  Result<GrantMapping> map(DomId domid, std::span<const grant_ref_t> refs, bool writable);

  // An error where the call failed as a whole. Where it did not, each operation's status tells
  // whether that one was done (GNTST_okay) and must be looked at.
  Result<void> copy(std::span<CopySegment> operations);

  uint64_t mapped_pages() const { return mapped_pages_; }

 private:
  friend class GrantMapping;
  // What libxengnttab is given to speak into; its first member is the library's own type.
  struct LibraryLog {
    xentoollog_logger vtable;
    const Logger* log;
    RateLimit limit;
  };

  explicit GrantTable(const Logger& log);
  static void library_message(xentoollog_logger* self, xentoollog_level level, int errnoval,
                              const char* context, const char* format, va_list args);
  void unmap(void* address, uint32_t pages);

  const Logger& log_;
  LibraryLog library_log_;
  RateLimit limit_;
  xengnttab_handle* handle_ = nullptr;
  uint64_t mapped_pages_ = 0;
};

}  // namespace vbdkit::xen
