// SPDX-License-Identifier: LGPL-2.1-or-later
//
// RemoteSink: lets a consumer on one reactor ("near") use the sink of another ("far"), so that a
// disk's queues may live on several threads while its image lives on one. Requests of a turn travel
// together, and so do completions: one wake per batch, and none while the other side is busy
// anyway.
//
// Thread: the RequestSink interface on the near reactor; create and set_info() anywhere. Ownership
// of a request passes with it, through lists without locks; there is no other shared state.
// Destroy it with nothing in flight and both loops stopped or past their next turn.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "backend/request_sink.h"
#include "io/reactor.h"

namespace vbdkit {

class RemoteSink : public RequestSink {
 public:
  // `info` is what the far sink says now.
  RemoteSink(io::Reactor& near, io::Reactor& far, RequestSink& target,
             const drivers::NodeInfo& info);
  ~RemoteSink() override;

  void submit(drivers::Request& request) override;
  const drivers::NodeInfo& info() const override { return info_; }
  void hurry() override;

  // The far side's properties have changed (size, read-only); the near one learns of it soon.
  void set_info(const drivers::NodeInfo& info);

 private:
  // A request's double on the far side.
  struct Hop : drivers::Request {
    RemoteSink* owner = nullptr;
    drivers::Request* origin = nullptr;
    int error = 0;
    Hop* link = nullptr;
  };
  // Any thread pushes, one takes all.
  class Mailbox {
   public:
    // True where it was empty: whoever takes must be woken.
    bool push(Hop* first, Hop* last);
    Hop* take_all();  // oldest first

   private:
    std::atomic<Hop*> newest_{nullptr};
  };
  struct Turn : io::Deferred {
    RemoteSink* self = nullptr;
  };

  Hop& take_hop();
  void send();
  void receive();
  void complete();

  io::Reactor& near_;
  io::Reactor& far_;
  RequestSink& target_;
  drivers::NodeInfo info_;

  // Near.
  Turn turn_;
  Hop* newest_outgoing_ = nullptr;
  Hop* oldest_outgoing_ = nullptr;
  std::vector<std::unique_ptr<Hop[]>> chunks_;
  Hop* free_ = nullptr;

  Mailbox requests_;
  Mailbox completions_;
};

}  // namespace vbdkit
