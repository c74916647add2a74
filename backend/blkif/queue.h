// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Queue: one ring of a connected disk with its event channel, from slots to Requests and from
// completions to responses.
//
// Thread: one reactor, its host's. Owner: the Vbd. Every turn ends with one push of all responses
// and at most one notify; requests that came meanwhile are taken before the queue asks for an
// event. Nothing is allocated and, but for grant copies, no system call made per request.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/blkif/guest_pages.h"
#include "backend/blkif/ring.h"
#include "backend/blkif/stats.h"
#include "backend/blkif/validate.h"
#include "backend/blkif/xentop_page.h"
#include "backend/request_sink.h"
#include "backend/xen/event_channels.h"
#include "backend/xen/grant_table.h"
#include "base/log.h"
#include "base/result.h"
#include "io/reactor.h"

namespace vbdkit::blkif {

// What a queue lives on: a reactor, that reactor's Xen handles, and the way to the image from
// there.
struct QueueHost {
  io::Reactor& reactor;
  xen::EventChannels& events;
  xen::GrantTable& grants;
  RequestSink& sink;
};

struct QueueParams {
  xen::DomId domid = 0;
  std::vector<grant_ref_t> ring_refs;  // a power of two of them
  evtchn_port_t event_channel = 0;
  const SlotLayout* layout = &kLayout64;
  PageAccess access = PageAccess::kCopy;
  unsigned indirect_segments = 0;
  bool read_only = false;
  bool discard = false;

  friend bool operator==(const QueueParams&, const QueueParams&) = default;
};

class Queue {
 public:
  // Maps the ring and binds the event channel; the first requests are taken in the reactor's next
  // turn. `xentop` may be null. `halted` is called at most once, when the guest has broken its ring
  // for good.
  static Result<std::unique_ptr<Queue>> create(const QueueHost& host, const QueueParams& params,
                                               const Logger& log, XentopPage* xentop,
                                               std::function<void(const std::string& why)> halted);
  ~Queue();  // only while quiet: before any turn of the reactor, or since quiesce() called back
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // Takes no more from the ring; `quiet` is called from the loop when all that was taken is
  // answered. It may destroy the queue.
  void quiesce(std::function<void()> quiet);
  void resume();

  const Stats& stats() const { return stats_; }

 private:
  struct Large;
  struct Inflight;
  struct Turn : io::Deferred {
    Queue* self = nullptr;
  };
  // A FIFO through Inflight::link.
  struct List {
    Inflight* head = nullptr;
    Inflight* tail = nullptr;
    bool empty() const { return head == nullptr; }
    void push(Inflight& r);
    Inflight* pop();
  };

  Queue(const QueueHost& host, const QueueParams& params, const Logger& log, XentopPage* xentop,
        xen::GrantMapping ring, std::function<void(const std::string&)> halted);

  Inflight& allocate();
  void recycle(Inflight& r);

  void serve();
  void push();
  bool take_requests();
  void take(const SlotRequest& slot, const Command& command, uint64_t now_us);
  void check_fetched(Inflight& r, const DiskLimits& disk);
  void prepare(Inflight& r);
  void attach(Inflight& r);
  void admit_waiting();
  void submit_prepared();
  void request_done(Inflight& r, int error);
  void answer_completed();
  void count_submitted(const Inflight& r);
  void count_answered(const Inflight& r, uint64_t now_us);
  void halt(const std::string& why);
  void trim_when_idle();
  DiskLimits disk_limits() const;

  const QueueHost host_;
  const QueueParams params_;
  const Logger& log_;
  RateLimit limit_;
  Stats stats_;
  XentopPage* const xentop_;
  Stats published_;  // to xentop_
  std::function<void(const std::string&)> halted_callback_;

  xen::GrantMapping ring_pages_;
  BackRing ring_;
  xen::EventPort port_;
  GuestPages pages_;
  Turn turn_;

  std::vector<std::unique_ptr<Inflight[]>> chunks_;
  Inflight* free_ = nullptr;
  std::vector<std::unique_ptr<Large>> larges_;
  Large* free_large_ = nullptr;

  List taken_;      // from the ring, segments being fetched
  List waiting_;    // for room to copy through
  List prepared_;   // to be submitted this turn
  List completed_;  // to be answered this turn
  unsigned unanswered_ = 0;
  bool halted_ = false;
  bool quiescing_ = false;
  std::vector<std::function<void()>> quiet_callbacks_;
  std::unique_ptr<io::Timer> trim_timer_;
  bool trim_armed_ = false;
};

}  // namespace vbdkit::blkif
