// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Connection: one libnbd handle on the reactor, from its connecting to its loss. libnbd does the
// protocol; its socket is watched through an epoll descriptor, as it wants now to read and now to
// write. What libnbd calls back may not call libnbd, so commands that are done are collected and
// the owner is told when libnbd has returned.
//
// A connection does not come back: after its loss the owner takes what was in flight and makes
// another one.
// The reactor's thread. Owned by the node, which also owns the commands.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "drivers/nbd/command.h"
#include "drivers/nbd/libnbd.h"
#include "io/reactor.h"

namespace vbdkit::drivers::nbd {

enum class Transport { kTcp, kUnix };

// Where a server is.
struct Target {
  std::string uri;
  Transport transport = Transport::kUnix;
  // Where the first TCP connection led. Later ones go there directly: looking up a name blocks.
  std::string address{};  // a sockaddr; empty before
  std::string export_name{};
};

// What the server says of its export.
struct ExportFacts {
  uint64_t size = 0;  // bytes
  uint32_t minimum_block = 1;
  uint32_t preferred_block = 4096;
  uint32_t maximum_payload = 0;
  bool read_only = false;
  bool can_flush = false;
  bool can_fua = false;
  bool can_trim = false;
  bool can_zero = false;
  bool can_status = false;
  bool rotational = false;
};

class Connection {
 public:
  enum class State { kConnecting, kReady, kLost };

  class Owner {
   public:
    // Commands are done, or the state is another. May destroy the connection.
    virtual void connection_event() = 0;

   protected:
    ~Owner() = default;
  };

  // Begins to connect.
  static Result<std::unique_ptr<Connection>> begin(const LibNbd& api, io::Reactor& reactor,
                                                   const Target& target, Owner& owner);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Blocks until it is ready. Not from inside a callback.
  Result<void> wait(std::chrono::milliseconds limit);

  State state() const;
  const std::string& why_lost() const { return why_lost_; }
  const ExportFacts& facts() const { return facts_; }
  // A target that leads to the same server without looking up its name.
  Target settled(const Target& target) const;

  // Once it is ready. The command is in `in_flight` until it is answered, then in `done`; after a
  // loss all that are not answered are in `in_flight`, in the order of sending.
  void send(Command& command);
  CommandList in_flight;
  CommandList done;

  // After a series of sends: what libnbd waits for may have changed.
  void update_watch();

 private:
  Connection(const LibNbd& api, io::Reactor& reactor, Owner& owner)
      : api_(api), reactor_(reactor), owner_(owner) {}
  Result<void> start(const Target& target);
  void readable();
  void after_progress();
  void note_loss();
  void read_facts();
  void answered(Command& command, int error);
  int64_t issue(Command& command);

  const LibNbd& api_;
  io::Reactor& reactor_;
  Owner& owner_;
  std::unique_ptr<nbd_handle, void (*)(nbd_handle*)> handle_{nullptr, nullptr};
  ExportFacts facts_;
  bool ready_ = false;
  bool shutting_down_ = false;  // the server said so
  std::string why_lost_;
  uint64_t answers_ = 0;

  Fd epoll_;
  int watched_fd_ = -1;
  uint32_t watched_events_ = 0;
  std::unique_ptr<io::FdWatch> watch_;
};

}  // namespace vbdkit::drivers::nbd
