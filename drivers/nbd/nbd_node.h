// SPDX-License-Identifier: LGPL-2.1-or-later
//
// NbdNode: the export of an NBD server as a leaf. It outlives its server: when the connection is
// lost the disk pauses, and goes on where it stopped when there is one again. What is in flight or
// arrives meanwhile is kept in order.
//
// What holds over a loss:
//  - A request that was in flight may or may not have been executed. It is sent again. That does no
//    harm, as none that overlaps it was sent meanwhile (node.h, "Order").
//  - Writes that were completed but not flushed may be lost with a server that crashed, and the
//  next
//    flush would not tell. So the node keeps a copy of each until a flush that came after it has
//    succeeded, and repeats them, in order, before anything else goes to the new connection
//    (as an NFS client does with what it has not committed). The memory for this is bounded: at
//    half of it the node flushes by itself, at all of it writes wait for that flush.
//  - With no such memory a loss that finds completed and unflushed writes makes the next flush fail
//    with EIO, once, as fsync(2) does.
//  - A server that offers no flush is believed to lose nothing.
// What does not hold: NBD cannot call back a command. A server that goes on executing commands of a
// connection that is gone while it serves the next one may bring old data back; a server that is
// killed cannot, nor one that handles a client's end before it accepts another. If server and
// instance both crash while writes are repeated, a FUA write may be lost that an unflushed write to
// the same place preceded.
//
// A server that comes back with another size, read-only, or with larger blocks is refused, and
// tried again later: it may have been started wrongly.
//
// The reactor's thread.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "base/buffer_pool.h"
#include "base/log.h"
#include "drivers/nbd/command.h"
#include "drivers/nbd/connection.h"
#include "drivers/node.h"
#include "drivers/patience.h"
#include "drivers/registry.h"
#include "drivers/stored_image.h"

namespace vbdkit::drivers::nbd {

struct NbdOptions {
  std::chrono::milliseconds reconnect_timeout{0};  // then requests fail; 0: they wait for ever
  uint64_t replay_memory = 32 << 20;               // bytes of writes that no flush has covered yet
  std::chrono::milliseconds handshake_timeout = std::chrono::seconds(10);
  std::chrono::milliseconds first_retry{100};  // doubled after each failure, up to:
  std::chrono::milliseconds last_retry = std::chrono::seconds(5);
};

struct NbdCounters {
  uint64_t losses = 0;    // of an established connection
  uint64_t attempts = 0;  // to connect anew
  uint64_t refused = 0;   // servers that were not the one expected
  uint64_t resent = 0;    // requests that had been in flight
  uint64_t replayed = 0;  // writes that had been completed and not flushed
  uint64_t own_flushes = 0;
};

class NbdNode final : public Node, public Patience, private Connection::Owner {
 public:
  NbdNode(const LibNbd& api, NodeSpec spec, Target target, NbdOptions options,
          const OpenContext& context);
  ~NbdNode() override;

  // Connects; blocks for handshake_timeout at most, and for looking up a name.
  Result<void> open();

  const NbdCounters& counters() const { return counters_; }
  uint64_t unflushed_bytes() const { return held_; }

  std::string_view driver() const override { return spec_.driver; }
  std::string spec() const override { return GraphSpec{{spec_}}.to_string(); }
  void list_images(std::vector<StoredImage>& images) const override {
    images.push_back({.format = spec_.driver,
                      .path = spec_.path,
                      .size = info_.size.v,
                      .read_only = info_.read_only});
  }
  const NodeInfo& info() const override { return info_; }
  void submit(Request& request) override;
  void block_status(StatusRequest& request) override;
  // Asks the server by another connection, which is used from then on if the size has changed.
  Result<void> refresh_size() override;
  Result<void> resize(Bytes size) override;
  Result<void> reopen(bool read_only) override;
  std::chrono::milliseconds patience() const override { return patience_; }
  void set_patience(std::chrono::milliseconds patience) override;

 private:
  enum class Phase {
    kConnecting,
    kReplaying,  // connected; unflushed writes are repeated
    kReady,
    kWaiting,  // for the next attempt
  };

  void connection_event() override { pump(); }
  // Does whatever can be done now.
  void pump();
  bool step();

  // Commands: nbd_node.cc.
  Command& take(Command::Kind kind, Op op, uint64_t offset, uint64_t length);
  void release(Command& command);
  bool prepare(Command& command);
  bool keeps_unflushed() const;
  void sync();
  bool issue_waiting();
  bool finish_done();
  void finish(Command& command);
  void write_done(Command& command);
  void flush_done(Command& command);
  void forget_unflushed(uint64_t last);
  void answer(Command& command, int error);
  void* zeroes();

  // Connections: reconnect.cc.
  void look_at_connection();
  void connect();
  void connected();
  std::string unfit(const ExportFacts& facts) const;
  void lost(const std::string& why);
  void retry_later(const std::string& why);
  void give_up();
  void take_back_in_flight();
  bool issue_replays();
  bool may_replay(const Command& command) const;
  void replay_done(Command& command);
  void switch_connection();
  Bytes usable(uint64_t bytes) const;
  void describe(const ExportFacts& facts);
  void trim_later();

  const LibNbd api_;
  NodeSpec spec_;
  Target target_;
  const NbdOptions options_;
  std::chrono::milliseconds patience_;
  io::Reactor& reactor_;
  const Logger& log_;
  const std::string label_;  // for messages
  NodeInfo info_;
  ExportFacts facts_;
  bool writable_;

  BufferPool pool_;
  std::vector<std::unique_ptr<Command>> commands_;
  Command* idle_ = nullptr;
  void* zeroes_ = nullptr;

  CommandList waiting_;    // to be sent
  CommandList unflushed_;  // completed writes, oldest first
  uint64_t sequence_ = 0;  // of the last completed write
  uint64_t flushed_ = 0;   // of the last one that a flush has covered
  uint64_t held_ = 0;      // bytes: costs of writes in flight and unflushed
  bool syncing_ = false;
  bool wants_sync_ = false;
  int lost_error_ = 0;  // what the next flush has to tell

  Phase phase_ = Phase::kConnecting;
  bool pumping_ = false;
  bool given_up_ = false;
  unsigned failures_ = 0;  // attempts since the loss
  std::chrono::steady_clock::time_point lost_at_{};
  Command* next_replay_ = nullptr;
  std::vector<Command*> replaying_;
  std::unique_ptr<Connection> connection_;
  std::unique_ptr<Connection> replacement_;  // takes over when nothing is in flight
  std::unique_ptr<io::Timer> retry_;         // the next attempt, or the end of the present one
  std::unique_ptr<io::Timer> give_up_;
  std::unique_ptr<io::Timer> trim_;
  bool trim_armed_ = false;
  // One for each kind of message, so that none hides the other.
  RateLimit loss_limit_, return_limit_, attempt_limit_, data_limit_;
  NbdCounters counters_;
};

}  // namespace vbdkit::drivers::nbd
