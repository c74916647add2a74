// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/blkif/xentop_page.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <new>
#include <utility>

#include "base/fd.h"

namespace vbdkit::blkif {
namespace {

// DIR may be writable by everybody, so a directory that was there before must be ours.
Result<void> make_own_directory(const std::string& path) {
  if (mkdir(path.c_str(), 0755) == 0) return {};
  if (errno != EEXIST) return Error::from_errno(errno, "xentop: create " + path);
  struct stat st {};
  if (lstat(path.c_str(), &st) != 0) return Error::from_errno(errno, "xentop: stat " + path);
  if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid())
    return Error(ErrorKind::kPermission, "xentop: " + path + " belongs to somebody else");
  return {};
}

}  // namespace

Result<std::unique_ptr<XentopPage>> XentopPage::create(const std::string& dir, xen::DomId domid,
                                                       const std::string& device_id) {
  std::string own = dir + "/td3-" + std::to_string(getpid());
  VBDKIT_TRY(make_own_directory(own));
  std::string path = own + "/vbd-" + std::to_string(domid) + "-" + device_id;
  VBDKIT_ASSIGN(Fd fd, Fd::open(path, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW, 0644));
  if (ftruncate(fd.get(), sizeof(Layout)) != 0)
    return Error::from_errno(errno, "xentop: size " + path);
  void* p = mmap(nullptr, sizeof(Layout), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (p == MAP_FAILED) return Error::from_errno(errno, "xentop: map " + path);
  auto* page = new (p) Layout{};
  page->version = 1;
  return std::unique_ptr<XentopPage>(new XentopPage(std::move(own), std::move(path), page));
}

XentopPage::~XentopPage() {
  munmap(page_, sizeof(Layout));
  unlink(path_.c_str());
  rmdir(dir_.c_str());  // stays while another disk of this process has its file there
}

void XentopPage::add(const Stats& now, Stats& published) {
  const auto add_field = [this](size_t i, const Counter& current, const Counter& before) {
    if (const uint64_t delta = current.value() - before.value())
      page_->fields[i].fetch_add(delta, std::memory_order_relaxed);
  };
  const auto add_direction = [&](size_t i, const DirectionStats& current,
                                 const DirectionStats& before) {
    add_field(i, current.submitted, before.submitted);
    add_field(i + 1, current.completed, before.completed);
    add_field(i + 2, current.sectors, before.sectors);
    add_field(i + 3, current.ticks_us, before.ticks_us);
  };
  add_field(0, now.out_of_resources, published.out_of_resources);
  add_direction(1, now.reads, published.reads);
  add_direction(5, now.writes, published.writes);
  add_field(9, now.errors, published.errors);
  published = now;
}

}  // namespace vbdkit::blkif
