// SPDX-License-Identifier: LGPL-2.1-or-later
//
// XenStore: the instance's connection to xenstored. Reads and writes ask the daemon and wait for
// its answer (tens of microseconds), so they belong to set-up and state changes, never to the way
// of an I/O. Watches are called from the reactor.
//
// Thread: the reactor's, for everything. libxenstore has a thread of its own that queues watch
// events; we empty that queue every turn and hand each watch what happened to it once, because the
// one who writes a watched node may be a guest (XSA-349).
// Errors name the operation and the path: "xenstore: read /local/domain/3/…: Permission denied".
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/xen/headers.h"
#include "base/log.h"
#include "base/result.h"
#include "io/reactor.h"

namespace vbdkit::xen {

enum class Access { kNone, kRead, kWrite, kReadWrite };

// The first of a node's permissions names its owner and what everybody else may do.
struct Permission {
  DomId domid;
  Access access;
};

// The store as seen from outside of a transaction, or from inside of one.
class StoreView {
 public:
  Result<std::string> read(const std::string& path) const;
  // Nothing where the node does not exist or cannot be seen any more: a removed directory of
  // another domain answers "permission denied" to a driver domain.
  Result<std::optional<std::string>> find(const std::string& path) const;
  Result<void> write(const std::string& path, std::string_view value) const;
  Result<void> remove(const std::string& path) const;  // with everything below; absent is fine
  Result<std::vector<std::string>> list(const std::string& path) const;
  Result<void> set_permissions(const std::string& path, std::span<const Permission> list) const;

 protected:
  StoreView(xs_handle* handle, xs_transaction_t transaction)
      : handle_(handle), transaction_(transaction) {}
  ~StoreView() = default;

  xs_handle* handle_;
  xs_transaction_t transaction_;
};

class XenStore : public StoreView {
 public:
  // Ends with its destruction, also from inside of its callback. Must not outlive the XenStore.
  class Watch {
   public:
    virtual ~Watch() = default;
  };

  [[gnu::cold]] static Result<std::unique_ptr<XenStore>> open(io::Reactor& reactor,
                                                              const Logger& log);
  ~XenStore();
  XenStore(const XenStore&) = delete;
  XenStore& operator=(const XenStore&) = delete;

  // All or nothing. `body` may run several times: another's write to a node it touched makes
  // xenstored refuse the commit. Don't read a guest's nodes inside: it could keep us from ever
  // committing.
  [[gnu::cold]] Result<void> transaction(
      const std::function<Result<void>(const StoreView&)>& body) const;

  // `fired` is called once soon after this and then whenever `path` or anything below it changes,
  // with the path that changed; where many changed in one turn, once with `path` itself.
  // "@releaseDomain" and "@introduceDomain" are paths too.
  [[gnu::cold]] Result<std::unique_ptr<Watch>> watch(
      const std::string& path, std::function<void(const std::string& changed)> fired);

 private:
  struct Entry {
    std::string path;
    std::shared_ptr<std::function<void(const std::string&)>> fired;
    std::set<std::string> changed;  // since the last turn
    bool overflow = false;
  };
  class WatchHandle;

  XenStore(io::Reactor& reactor, const Logger& log, xs_handle* handle, xs_handle* watcher);
  void drain();
  void take_event(const std::string& path, const std::string& token);
  void dispatch();
  void remove_watch(uint64_t id);

  const Logger& log_;
  // A connection of their own: libxenstore starts a thread for one that has watches, and every
  // answer on it would come through that thread.
  xs_handle* const watcher_;
  std::map<uint64_t, Entry> watches_;  // by token
  uint64_t next_token_ = 1;            // never used twice: no event reaches a later watch
  std::unique_ptr<io::FdWatch> readable_;
};

}  // namespace vbdkit::xen
