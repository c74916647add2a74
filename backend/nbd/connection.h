// SPDX-License-Identifier: LGPL-2.1-or-later
//
// One NBD client, from its handshake to its end. Built for batches: one receive takes as many
// requests as the client has sent, the replies of one turn leave in one send, and data moves
// between socket and page-aligned buffers without another copy (but for the part of a write that
// arrived together with headers).
//
//     recv ─▶ headers ─▶ check ─▶ Slot ─▶ sink … done ─▶ ready list ─▶ one sendmsg per turn
//
// Bounds: at most max_requests slots and max_bytes of data are in use, from a request's header to
// the end of its reply's send; then the socket is not read from, so a client that sends without
// receiving stalls itself and nobody else.
//
// Thread: the reactor's. Owned by the server, which destroys it some time after closed().
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/nbd/block_status.h"
#include "backend/nbd/negotiation.h"
#include "backend/nbd/server.h"
#include "base/buffer_pool.h"
#include "base/fd.h"

namespace vbdkit::nbd {

class Connection;
struct Slot;

// What the connections of one server share. Everything outlives them.
struct ServerContext {
  io::Reactor& reactor;
  RequestSink& sink;
  StatusSource& status;
  const Logger& log;
  ServerOptions options;
  BufferPool pool;
  ServerStats stats;
  RateLimit log_limit;
  std::function<void(Connection&)> closed;  // nothing of it is in the reactor or the sink any more
  std::function<void()> active;             // work began after a time of idleness

  Export describe() const;
  bool read_only() const { return options.read_only || sink.info().read_only; }
};

// A queue through Slot::next_slot.
struct SlotList {
  Slot* head = nullptr;
  Slot* tail = nullptr;

  void push(Slot& slot);
  Slot* pop();
  bool empty() const { return head == nullptr; }
};

class Connection {
 public:
  Connection(ServerContext& server, Fd socket);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void start();
  // Takes no more requests; ends when those in flight are answered.
  void drain();
  // Ends as soon as the sink has given its requests back; nothing more is sent.
  void abort();
  // Gives back what an idle connection does not need.
  void trim();

  bool busy() const { return in_flight_ > 0 || rx_begin_ != rx_end_; }

 private:
  enum class Phase { kHandshake, kTransmission, kDraining, kClosed };
  struct RecvOp : io::SocketOp {
    Connection* connection;
  };
  struct SendOp : io::SocketOp {
    Connection* connection;
  };
  struct Flush : io::Deferred {
    Connection* connection;
  };

  // The socket: connection.cc.
  void receive();
  void received(int64_t result);
  void flush();
  void gather_replies();
  void sent(int64_t result);
  void send_done();
  void drop_payload();
  void reject(const char* why);
  void close();
  void finish_if_done();

  // What arrives: connection.cc. Each returns false where it cannot go on for now.
  void process();
  bool negotiate();
  void select_contexts();
  bool take_payload();
  bool take_request();

  // What is done about it: commands.cc.
  RequestLimits limits() const;
  Slot& take_slot(const RequestHeader& header);
  void free_slot(Slot& slot);
  bool take_buffer(Slot& slot, size_t bytes);
  void begin(Slot& slot);
  void submit(Slot& slot, drivers::Op op, uint8_t flags);
  void begin_status(Slot& slot);
  void status_done(Slot& slot, int error);
  void cache_step(Slot& slot);
  void reply(Slot& slot, WireError error);
  void count(const Slot& slot, WireError error);

  ServerContext& server_;
  Fd socket_;
  Phase phase_ = Phase::kHandshake;
  std::optional<Negotiation> negotiation_;  // until transmission
  std::unique_ptr<io::Timer> deadline_;     // of the handshake
  bool structured_ = false;
  std::vector<StatusContext> contexts_;

  // Received bytes not yet understood: [rx_begin_, rx_end_) of rx_.
  uint8_t* rx_ = nullptr;
  size_t rx_begin_ = 0;
  size_t rx_end_ = 0;
  size_t rx_limit_;          // how much is asked for beyond a payload
  Slot* payload_ = nullptr;  // a write whose data is arriving
  size_t payload_have_ = 0;  // bytes
  bool receiving_ = false;
  bool stalled_ = false;   // a request waits for room
  bool finished_ = false;  // the server was told
  RecvOp recv_op_;
  msghdr recv_msg_{};
  iovec recv_iov_[2];

  // Answers: `ready_` wait for the next send, `sending_` are in it.
  SlotList ready_;
  SlotList sending_;
  std::string output_;  // handshake replies
  bool sending_now_ = false;
  SendOp send_op_;
  msghdr send_msg_{};
  std::vector<iovec> send_iov_;
  Flush flush_;

  std::vector<std::unique_ptr<Slot[]>> slot_blocks_;
  Slot* free_slots_ = nullptr;
  unsigned in_flight_ = 0;        // slots in use
  uint64_t bytes_in_flight_ = 0;  // of buffers
};

}  // namespace vbdkit::nbd
