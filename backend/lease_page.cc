// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/lease_page.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

namespace vbdkit {

struct LeaseLayout {
  std::atomic<uint64_t> hold_at;  // nanoseconds
  std::atomic<uint64_t> epoch;
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

namespace {

std::string path_in(const std::string& runtime_dir) { return runtime_dir + "/registry.lease"; }

Result<void*> map(const Fd& fd, int protection, const std::string& path) {
  void* const page = ::mmap(nullptr, sizeof(LeaseLayout), protection, MAP_SHARED, fd.get(), 0);
  if (page == MAP_FAILED) return Error::from_errno(errno, "map " + path);
  return page;
}

}  // namespace

BootClock::time_point BootClock::now() {
  timespec t{};
  ::clock_gettime(CLOCK_BOOTTIME, &t);
  return time_point(std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec));
}

void LeaseView::Unmap::operator()(const LeaseLayout* page) const {
  ::munmap(const_cast<LeaseLayout*>(page), sizeof *page);
}

Result<LeaseView> LeaseView::open(const std::string& runtime_dir) {
  const std::string path = path_in(runtime_dir);
  VBDKIT_ASSIGN(const Fd fd, Fd::open(path, O_RDONLY | O_NOFOLLOW));
  struct stat st {};
  if (::fstat(fd.get(), &st) < 0) return Error::from_errno(errno, "open " + path);
  if (st.st_size < static_cast<off_t>(sizeof(LeaseLayout)))
    return Error(ErrorKind::kCorrupt, path + " is too short");
  VBDKIT_ASSIGN(void* const page, map(fd, PROT_READ, path));
  return LeaseView(static_cast<const LeaseLayout*>(page));
}

BootClock::time_point LeaseView::hold_at(uint64_t epoch) const {
  const uint64_t ns = page_->hold_at.load(std::memory_order_acquire);
  if (page_->epoch.load(std::memory_order_acquire) != epoch) return {};
  return BootClock::time_point(std::chrono::nanoseconds(ns));
}

uint64_t LeaseView::epoch() const { return page_->epoch.load(std::memory_order_acquire); }

void LeasePage::Unmap::operator()(LeaseLayout* page) const { ::munmap(page, sizeof *page); }

Result<LeasePage> LeasePage::create(const std::string& runtime_dir) {
  const std::string path = path_in(runtime_dir);
  // For those that have become another user, too, who got to it before.
  VBDKIT_ASSIGN(const Fd fd, Fd::open(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0644));
  struct stat st {};
  if (::fstat(fd.get(), &st) < 0) return Error::from_errno(errno, "open " + path);
  if (st.st_size < static_cast<off_t>(sizeof(LeaseLayout)) &&
      ::ftruncate(fd.get(), sizeof(LeaseLayout)) < 0)
    return Error::from_errno(errno, "write " + path);
  VBDKIT_ASSIGN(void* const page, map(fd, PROT_READ | PROT_WRITE, path));
  return LeasePage(static_cast<LeaseLayout*>(page));
}

void LeasePage::publish(uint64_t epoch, BootClock::time_point hold_at) {
  if (page_->epoch.load(std::memory_order_relaxed) != epoch) {
    close();
    page_->epoch.store(epoch, std::memory_order_release);
  }
  page_->hold_at.store(static_cast<uint64_t>(hold_at.time_since_epoch().count()),
                       std::memory_order_release);
}

void LeasePage::close() { page_->hold_at.store(0, std::memory_order_release); }

uint64_t LeasePage::epoch() const { return page_->epoch.load(std::memory_order_acquire); }

}  // namespace vbdkit
