// SPDX-License-Identifier: LGPL-2.1-or-later
#include <poll.h>

extern "C" {
#include <xenstore.h>
}

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <mutex>

#include "tests/sim/store.h"

namespace vbdkit::sim {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

Error failed(const std::string& what) { return Error::from_errno(errno, "store: " + what); }

}  // namespace

Result<std::unique_ptr<Dom0Store>> Dom0Store::open(const std::string& run_dir) {
  // libxenstore learns the place from the environment only, and reads it in xs_open.
  static std::mutex environment_lock;
  const std::lock_guard lock(environment_lock);
  const char* before = std::getenv("XENSTORED_RUNDIR");
  const std::string saved = before == nullptr ? "" : before;
  ::setenv("XENSTORED_RUNDIR", run_dir.c_str(), 1);
  xs_handle* xs = ::xs_open(0);
  const int error = errno;
  if (before == nullptr)
    ::unsetenv("XENSTORED_RUNDIR");
  else
    ::setenv("XENSTORED_RUNDIR", saved.c_str(), 1);
  if (xs == nullptr) return Error::from_errno(error, "store: xs_open in " + run_dir);
  return std::unique_ptr<Dom0Store>(new Dom0Store(xs));
}

Dom0Store::~Dom0Store() { ::xs_close(xs_); }

Result<std::string> Dom0Store::read(const std::string& path, Transaction t) {
  unsigned size = 0;
  const std::unique_ptr<void, Free> value(::xs_read(xs_, t, path.c_str(), &size));
  if (value == nullptr) return failed("read " + path);
  return std::string(static_cast<const char*>(value.get()), size);
}

Result<void> Dom0Store::write(const std::string& path, std::string_view value, Transaction t) {
  if (!::xs_write(xs_, t, path.c_str(), value.data(), static_cast<unsigned>(value.size())))
    return failed("write " + path);
  return {};
}

Result<void> Dom0Store::remove(const std::string& path, Transaction t) {
  if (!::xs_rm(xs_, t, path.c_str())) return failed("remove " + path);
  return {};
}

Result<std::vector<std::string>> Dom0Store::list(const std::string& path, Transaction t) {
  unsigned count = 0;
  const std::unique_ptr<char*, Free> names(::xs_directory(xs_, t, path.c_str(), &count));
  if (names == nullptr) return failed("list " + path);
  return std::vector<std::string>(names.get(), names.get() + count);
}

Result<Store::Transaction> Dom0Store::begin() {
  const xs_transaction_t t = ::xs_transaction_start(xs_);
  if (t == XBT_NULL) return failed("begin");
  return t;
}

Result<bool> Dom0Store::commit(Transaction t) {
  if (::xs_transaction_end(xs_, t, false)) return true;
  if (errno == EAGAIN) return false;
  return failed("commit");
}

Result<void> Dom0Store::watch(const std::string& path, const std::string& token) {
  if (!::xs_watch(xs_, path.c_str(), token.c_str())) return failed("watch " + path);
  return {};
}

Result<void> Dom0Store::unwatch(const std::string& path, const std::string& token) {
  if (!::xs_unwatch(xs_, path.c_str(), token.c_str())) return failed("unwatch " + path);
  return {};
}

Result<Store::Event> Dom0Store::next_event(Deadline deadline) {
  // xs_fileno starts libxenstore's reading thread, which keeps this descriptor readable while an
  // event is queued.
  pollfd p{::xs_fileno(xs_), POLLIN, 0};
  for (;;) {
    errno = 0;
    const std::unique_ptr<char*, Free> event(::xs_check_watch(xs_));
    if (event != nullptr) return Event{event.get()[XS_WATCH_PATH], event.get()[XS_WATCH_TOKEN]};
    if (errno != 0 && errno != EAGAIN) return failed("watch event");
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return Error(ErrorKind::kTimedOut, "store: no watch event");
    ::poll(&p, 1, static_cast<int>(left.count()));
  }
}

Result<void> Dom0Store::mkdir(const std::string& path, Transaction t) {
  if (!::xs_mkdir(xs_, t, path.c_str())) return failed("mkdir " + path);
  return {};
}

Result<void> Dom0Store::set_permissions(const std::string& path, DomId owner, DomId reader,
                                        Transaction t) {
  xs_permissions perms[] = {{owner, XS_PERM_NONE}, {reader, XS_PERM_READ}};
  if (!::xs_set_permissions(xs_, t, path.c_str(), perms, 2)) return failed("permit " + path);
  return {};
}

Result<void> Dom0Store::introduce(DomId domid, Gfn store_page, EvtPort port) {
  if (!::xs_introduce_domain(xs_, domid, store_page, port))
    return failed("introduce domain " + std::to_string(domid));
  return {};
}

}  // namespace vbdkit::sim
