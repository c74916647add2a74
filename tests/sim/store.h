// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Xenstore as one domain sees it. StoreRing is a guest's: the wire protocol of <xen/io/xs_wire.h>
// on the ring that xenstored mapped, so permissions, quotas and disconnects are xenstored's own.
// Dom0Store is the toolstack's: libxenstore on the unix socket. Each belongs to one thread.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tests/sim/event_channels.h"

struct xs_handle;

namespace vbdkit::sim {

class Store {
 public:
  using Transaction = uint32_t;
  static constexpr Transaction kNoTransaction = 0;

  virtual ~Store() = default;

  virtual Result<std::string> read(const std::string& path, Transaction t = kNoTransaction) = 0;
  virtual Result<void> write(const std::string& path, std::string_view value,
                             Transaction t = kNoTransaction) = 0;
  virtual Result<void> remove(const std::string& path, Transaction t = kNoTransaction) = 0;
  virtual Result<std::vector<std::string>> list(const std::string& path,
                                                Transaction t = kNoTransaction) = 0;
  virtual Result<Transaction> begin() = 0;
  // False where somebody else's change went first: try again.
  virtual Result<bool> commit(Transaction t) = 0;

  virtual Result<void> watch(const std::string& path, const std::string& token) = 0;
  virtual Result<void> unwatch(const std::string& path, const std::string& token) = 0;
  struct Event {
    std::string path;
    std::string token;
  };
  // The next watch event, or kTimedOut.
  virtual Result<Event> next_event(Deadline deadline) = 0;

  // The value where there is one, else `otherwise`.
  std::string read_or(const std::string& path, std::string otherwise = "");
  // Watches `path` until what it holds ("" where it does not exist) is what `done` wants; returns
  // it.
  Result<std::string> wait_for(const std::string& path,
                               const std::function<bool(const std::string&)>& done,
                               Deadline deadline);
  // Waits until the path no longer exists.
  Result<void> wait_gone(const std::string& path, Deadline deadline);

 private:
  unsigned next_wait_token_ = 0;
};

class StoreRing : public Store {
 public:
  // `page` is the guest's store page, `port` its end of the channel xenstored has bound.
  StoreRing(std::byte* page, EventChannels& events, EvtPort port);

  Result<std::string> read(const std::string& path, Transaction t = kNoTransaction) override;
  Result<void> write(const std::string& path, std::string_view value,
                     Transaction t = kNoTransaction) override;
  Result<void> remove(const std::string& path, Transaction t = kNoTransaction) override;
  Result<std::vector<std::string>> list(const std::string& path,
                                        Transaction t = kNoTransaction) override;
  Result<Transaction> begin() override;
  Result<bool> commit(Transaction t) override;
  Result<void> watch(const std::string& path, const std::string& token) override;
  Result<void> unwatch(const std::string& path, const std::string& token) override;
  Result<Event> next_event(Deadline deadline) override;

  // Any message, for hostile guests; `type` is an xs_wire.h XS_* value.
  Result<std::string> request(uint32_t type, Transaction t, std::string_view payload);

 private:
  struct Message {
    uint32_t type;
    uint32_t id;
    std::string payload;
  };
  Result<void> put(const void* data, size_t size, Deadline deadline);
  Result<void> get(void* data, size_t size, Deadline deadline);
  Result<Message> get_message(Deadline deadline);
  Result<void> wait_event(Deadline deadline);
  bool readable() const;

  std::byte* page_;
  EventChannels& events_;
  EvtPort port_;
  uint32_t next_id_ = 1;
  std::deque<Event> events_queued_;
};

class Dom0Store : public Store {
 public:
  // Finds xenstored through `run_dir`, as programs do through XENSTORED_RUNDIR.
  static Result<std::unique_ptr<Dom0Store>> open(const std::string& run_dir);
  ~Dom0Store() override;

  Result<std::string> read(const std::string& path, Transaction t = kNoTransaction) override;
  Result<void> write(const std::string& path, std::string_view value,
                     Transaction t = kNoTransaction) override;
  Result<void> remove(const std::string& path, Transaction t = kNoTransaction) override;
  Result<std::vector<std::string>> list(const std::string& path,
                                        Transaction t = kNoTransaction) override;
  Result<Transaction> begin() override;
  Result<bool> commit(Transaction t) override;
  Result<void> watch(const std::string& path, const std::string& token) override;
  Result<void> unwatch(const std::string& path, const std::string& token) override;
  Result<Event> next_event(Deadline deadline) override;

  Result<void> mkdir(const std::string& path, Transaction t);
  // The owner, who has every right, and one domain that may read.
  Result<void> set_permissions(const std::string& path, DomId owner, DomId reader, Transaction t);
  Result<void> introduce(DomId domid, Gfn store_page, EvtPort port);

 private:
  explicit Dom0Store(xs_handle* xs) : xs_(xs) {}
  xs_handle* xs_;
};

}  // namespace vbdkit::sim
