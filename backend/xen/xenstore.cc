// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/xen/xenstore.h"

#include <array>
#include <charconv>
#include <cstdlib>
#include <utility>

namespace vbdkit::xen {
namespace {

struct FreeDeleter {
  void operator()(void* p) const { free(p); }
};
template <typename T>
using Malloced = std::unique_ptr<T, FreeDeleter>;

// Bounds of one turn: what a guest can make us do before the ring is served again.
constexpr unsigned kEventsPerTurn = 1024;
constexpr size_t kPathsPerWatch = 64;
constexpr unsigned kTransactionTries = 100;

Error failed(const char* operation, const std::string& path) {
  return Error::from_errno(errno, std::string("xenstore: ") + operation + " " + path);
}

unsigned to_xs(Access access) {
  switch (access) {
    case Access::kNone:
      return XS_PERM_NONE;
    case Access::kRead:
      return XS_PERM_READ;
    case Access::kWrite:
      return XS_PERM_WRITE;
    case Access::kReadWrite:
      break;
  }
  return XS_PERM_READ | XS_PERM_WRITE;
}

// Inside of a transaction: the same calls, with its id.
class TransactionView : public StoreView {
 public:
  TransactionView(xs_handle* handle, xs_transaction_t id) : StoreView(handle, id) {}
};

}  // namespace

Result<std::string> StoreView::read(const std::string& path) const {
  unsigned length = 0;
  Malloced<void> value(xs_read(handle_, transaction_, path.c_str(), &length));
  if (!value) return failed("read", path);
  return std::string(static_cast<const char*>(value.get()), length);
}

Result<std::optional<std::string>> StoreView::find(const std::string& path) const {
  auto value = read(path);
  if (value) return std::optional<std::string>(std::move(value).value());
  int reason = value.error().sys_errno();
  if (reason == ENOENT || reason == EACCES) return std::optional<std::string>();
  return std::move(value).error();
}

Result<void> StoreView::write(const std::string& path, std::string_view value) const {
  if (!xs_write(handle_, transaction_, path.c_str(), value.data(),
                static_cast<unsigned>(value.size())))
    return failed("write", path);
  return {};
}

Result<void> StoreView::remove(const std::string& path) const {
  if (!xs_rm(handle_, transaction_, path.c_str()) && errno != ENOENT) return failed("remove", path);
  return {};
}

Result<std::vector<std::string>> StoreView::list(const std::string& path) const {
  unsigned count = 0;
  Malloced<char*> names(xs_directory(handle_, transaction_, path.c_str(), &count));
  if (!names) return failed("list", path);
  return std::vector<std::string>(names.get(), names.get() + count);
}

Result<void> StoreView::set_permissions(const std::string& path,
                                        std::span<const Permission> list) const {
  std::vector<xs_permissions> raw;
  for (const Permission& p : list) {
    xs_permissions entry{};
    entry.id = p.domid;
    entry.perms = static_cast<decltype(entry.perms)>(to_xs(p.access));
    raw.push_back(entry);
  }
  if (!xs_set_permissions(handle_, transaction_, path.c_str(), raw.data(),
                          static_cast<unsigned>(raw.size())))
    return failed("set the permissions of", path);
  return {};
}

class XenStore::WatchHandle : public XenStore::Watch {
 public:
  WatchHandle(XenStore& store, uint64_t id) : store_(store), id_(id) {}
  ~WatchHandle() override { store_.remove_watch(id_); }

 private:
  XenStore& store_;
  uint64_t id_;
};

Result<std::unique_ptr<XenStore>> XenStore::open(io::Reactor& reactor, const Logger& log) {
  xs_handle* handle = xs_open(0);
  if (handle == nullptr) return Error::from_errno(errno, "xenstore: connect to xenstored");
  xs_handle* watcher = xs_open(XS_UNWATCH_FILTER);
  if (watcher == nullptr) {
    Error error = Error::from_errno(errno, "xenstore: connect to xenstored");
    xs_close(handle);
    return error;
  }
  return std::unique_ptr<XenStore>(new XenStore(reactor, log, handle, watcher));
}

XenStore::XenStore(io::Reactor& reactor, const Logger& log, xs_handle* handle, xs_handle* watcher)
    : StoreView(handle, XBT_NULL),
      log_(log),
      watcher_(watcher),
      readable_(reactor.watch(xs_fileno(watcher), [this] { drain(); })) {}

XenStore::~XenStore() {
  readable_.reset();
  xs_close(watcher_);
  xs_close(handle_);
}

Result<void> XenStore::transaction(
    const std::function<Result<void>(const StoreView&)>& body) const {
  for (unsigned i = 0; i < kTransactionTries; ++i) {
    xs_transaction_t id = xs_transaction_start(handle_);
    if (id == XBT_NULL) return Error::from_errno(errno, "xenstore: start a transaction");
    Result<void> done = body(TransactionView(handle_, id));
    if (!done) {
      xs_transaction_end(handle_, id, true);
      // A conflict may show in the middle as well as at the end.
      if (done.error().sys_errno() == EAGAIN) continue;
      return done;
    }
    if (xs_transaction_end(handle_, id, false)) return {};
    if (errno != EAGAIN) return Error::from_errno(errno, "xenstore: commit a transaction");
  }
  return Error(ErrorKind::kBusy,
               "xenstore: a transaction met conflicting writes " +
                   std::to_string(kTransactionTries) + " times",
               EAGAIN);
}

Result<std::unique_ptr<XenStore::Watch>> XenStore::watch(
    const std::string& path, std::function<void(const std::string&)> fired) {
  uint64_t id = next_token_++;
  // In place before the daemon answers: it fires the watch at once.
  watches_[id] = Entry{
      path, std::make_shared<std::function<void(const std::string&)>>(std::move(fired)), {}, false};
  if (!xs_watch(watcher_, path.c_str(), std::to_string(id).c_str())) {
    Error error = failed("watch", path);
    watches_.erase(id);
    return error;
  }
  return std::unique_ptr<Watch>(std::make_unique<WatchHandle>(*this, id));
}

void XenStore::remove_watch(uint64_t id) {
  auto it = watches_.find(id);
  if (it == watches_.end()) return;
  xs_unwatch(watcher_, it->second.path.c_str(), std::to_string(id).c_str());
  watches_.erase(it);
}

void XenStore::drain() {
  for (unsigned i = 0; i < kEventsPerTurn; ++i) {
    Malloced<char*> event(xs_check_watch(watcher_));
    if (!event) {
      if (errno == EAGAIN) break;
      log_.error("xenstore: read a watch event: %s",
                 Error::from_errno(errno, "").message().c_str());
      readable_.reset();  // xenstored is gone; its descriptor would stay readable for ever
      break;
    }
    take_event(event.get()[XS_WATCH_PATH], event.get()[XS_WATCH_TOKEN]);
  }
  dispatch();
}

void XenStore::take_event(const std::string& path, const std::string& token) {
  uint64_t id = 0;
  std::from_chars(token.data(), token.data() + token.size(), id);
  auto it = watches_.find(id);
  if (it == watches_.end()) return;
  Entry& entry = it->second;
  if (entry.overflow) return;
  entry.changed.insert(path);
  if (entry.changed.size() > kPathsPerWatch) {
    entry.overflow = true;
    entry.changed.clear();
  }
}

void XenStore::dispatch() {
  std::vector<uint64_t> fired;
  for (const auto& [id, entry] : watches_)
    if (entry.overflow || !entry.changed.empty()) fired.push_back(id);
  for (uint64_t id : fired) {
    auto it = watches_.find(id);
    if (it == watches_.end()) continue;  // an earlier callback ended it
    Entry& entry = it->second;
    std::set<std::string> changed = std::exchange(entry.changed, {});
    if (std::exchange(entry.overflow, false)) changed = {entry.path};
    auto callback = entry.fired;  // outlives the watch, should the callback end it
    for (const std::string& path : changed) {
      (*callback)(path);
      if (!watches_.contains(id)) break;
    }
  }
}

}  // namespace vbdkit::xen
