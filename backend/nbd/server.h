// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The NBD server of one disk: listens on a unix socket, negotiates (fixed newstyle), and turns the
// commands of its clients into requests to a RequestSink. The protocol is the NBD project's
// doc/proto.md; protocol.h has its layout, negotiation.h the handshake, connection.h one client.
//
// Thread: the reactor's. The sink and the status source live on it as well.
// Ownership: the owner of the disk has the server and ends it with shutdown() before the sink goes.
// Size: sink.info() is asked for each request and each new client, so a disk that grew is served
// as such at once. Clients that negotiated earlier keep their idea of the size until they reconnect
// (the protocol has no message for it).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/request_sink.h"
#include "backend/scheduler.h"
#include "base/log.h"
#include "drivers/dirty_bitmap.h"
#include "io/reactor.h"

namespace vbdkit::nbd {

// Answers "what is allocated, what reads as zeroes" for base:allocation, and "what was changed" for
// the dirty bitmaps.
class StatusSource {
 public:
  virtual ~StatusSource() = default;
  // As drivers::Node::block_status; `done` may run inside the call.
  virtual void block_status(drivers::StatusRequest& request) = 0;
  // Those that there are at present. None outlives the call's turn of the loop for certain.
  virtual std::vector<drivers::DirtyBitmap*> dirty_bitmaps() { return {}; }
  virtual const drivers::DirtyBitmap* dirty_bitmap(std::string_view) { return nullptr; }
};

// Asks whichever node is on top when the question comes.
class SchedulerStatus final : public StatusSource {
 public:
  explicit SchedulerStatus(Scheduler& scheduler) : scheduler_(scheduler) {}
  void block_status(drivers::StatusRequest& request) override { scheduler_.block_status(request); }
  std::vector<drivers::DirtyBitmap*> dirty_bitmaps() override {
    return drivers::dirty_bitmaps(scheduler_.node());
  }
  const drivers::DirtyBitmap* dirty_bitmap(std::string_view name) override {
    return drivers::find_dirty_bitmap(scheduler_.node(), name);
  }

 private:
  Scheduler& scheduler_;
};

struct ServerOptions {
  std::string path = {};                    // of the unix socket; at most 107 bytes
  std::string export_name = {};             // clients that ask for "" get it too
  std::string description = {};             // shown by LIST and INFO; may be empty
  bool read_only = false;                   // also where the node is read-only
  unsigned max_connections = 16;            // more clients wait in the listen queue
  unsigned max_requests = 128;              // in flight per connection; then it is not read from
  uint64_t max_bytes = uint64_t{64} << 20;  // of their data per connection, likewise
  std::chrono::milliseconds handshake_timeout = std::chrono::seconds(10);
  std::chrono::milliseconds idle_trim = std::chrono::seconds(2);  // then buffers are given back
  // Called from the loop after clients have come or gone (ServerStats::connections); not any more
  // once shutdown() was called.
  std::function<void()> clients_changed = {};
};

struct ServerStats {
  uint64_t connections = 0;  // at present
  uint64_t accepted = 0;
  uint64_t rejected = 0;  // broke the protocol, or did not finish the handshake
  uint64_t reads = 0;
  uint64_t writes = 0;
  uint64_t flushes = 0;
  uint64_t others = 0;
  uint64_t errors = 0;  // requests answered with an error
  uint64_t bytes_read = 0;
  uint64_t bytes_written = 0;
  uint64_t receives = 0;  // recv operations; with `sends` shows how well requests batch
  uint64_t sends = 0;
};

class Server {
 public:
  // Listens from here on. A socket that a dead process left at `path` is replaced; one that
  // somebody listens on is an error of kind kBusy. The file has mode 0600 from the start.
  [[gnu::cold]] static Result<std::unique_ptr<Server>> create(io::Reactor& reactor,
                                                              RequestSink& sink,
                                                              StatusSource& status,
                                                              ServerOptions options,
                                                              const Logger& log);
  virtual ~Server() = default;  // after shutdown()'s `done`, or when the loop no longer runs

  // No new client, no new request; what is in flight is answered; the socket is unlinked. `done`
  // runs from the loop when the last connection is gone, within drain_timeout at the latest unless
  // the sink still holds requests.
  virtual void shutdown(std::function<void()> done,
                        std::chrono::milliseconds drain_timeout = std::chrono::seconds(5)) = 0;

  virtual const std::string& path() const = 0;
  virtual const std::string& export_name() const = 0;
  virtual ServerStats stats() const = 0;

 protected:
  Server() = default;
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
};

}  // namespace vbdkit::nbd
