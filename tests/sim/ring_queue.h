// SPDX-License-Identifier: LGPL-2.1-or-later
//
// One blkif ring from the guest's side: fills slots, pushes them, and checks every response the way
// a suspicious blkfront does (known id, right operation, no duplicate, zero padding). All buffers
// and shadow entries exist before the first request, so the way of a request allocates nothing. One
// thread per queue. raw() is for scripts that break the rules.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "tests/sim/blkif_abi.h"
#include "tests/sim/event_channels.h"
#include "tests/sim/guest.h"

namespace vbdkit::sim {

// A piece of a page, in sectors of 512 bytes, both ends inclusive (blkif_request_segment).
struct Segment {
  GrantRef ref;
  uint8_t first_sector;
  uint8_t last_sector;
};

// The ring as memory: any slot, any index, at any time.
class RawRing {
 public:
  RawRing(std::byte* page, Abi abi, unsigned order)
      : page_(page), layout_(slot_layout(abi)), slots_(ring_slots(abi, order)) {}

  uint32_t slots() const { return slots_; }
  const SlotLayout& layout() const { return layout_; }
  std::byte* slot(uint32_t index) const {
    return page_ + 64 + (index & (slots_ - 1)) * layout_.size;
  }
  // Writes a field of a slot, at an offset of layout().
  template <typename T>
  void put(uint32_t index, size_t offset, T value) const {
    __builtin_memcpy(slot(index) + offset, &value, sizeof value);
  }
  template <typename T>
  T get(uint32_t index, size_t offset) const {
    T value;
    __builtin_memcpy(&value, slot(index) + offset, sizeof value);
    return value;
  }
  std::atomic<uint32_t>& req_prod() const { return word(0); }
  std::atomic<uint32_t>& req_event() const { return word(4); }
  std::atomic<uint32_t>& rsp_prod() const { return word(8); }
  std::atomic<uint32_t>& rsp_event() const { return word(12); }

 private:
  std::atomic<uint32_t>& word(size_t offset) const {
    return *reinterpret_cast<std::atomic<uint32_t>*>(page_ + offset);
  }
  std::byte* page_;
  SlotLayout layout_;
  uint32_t slots_;
};

struct QueueOptions {
  Abi abi = Abi::kX86_64;
  unsigned order = 0;
  unsigned max_segments = BLKIF_MAX_SEGMENTS_PER_REQUEST;  // above it: indirect requests
  uint16_t handle = 0;                                     // the vdev, as blkfront sends it
  // Padding of a response must be zero, so that it carries nothing of the backend's stack
  // (XSA-216). QEMU leaves the guest's own old bytes there instead, which is safe, too.
  bool padding_zero = true;
};

struct Completion {
  uint64_t tag;  // what submit() was given
  uint8_t operation;
  int16_t status;  // BLKIF_RSP_*
};

class RingQueue {
 public:
  // Allocates and grants the ring and binds an unbound port for domain 0.
  static Result<std::unique_ptr<RingQueue>> create(Guest& guest, const QueueOptions& options);
  ~RingQueue();
  RingQueue(const RingQueue&) = delete;
  RingQueue& operator=(const RingQueue&) = delete;

  const std::vector<GrantRef>& ring_refs() const { return ring_refs_; }
  EvtPort port() const { return port_; }
  unsigned max_segments() const { return options_.max_segments; }
  uint32_t free_slots() const { return static_cast<uint32_t>(free_ids_.size()); }
  uint32_t in_flight() const { return raw_.slots() - free_slots(); }

  // Fills a slot; push() makes it visible. Requests of more than 11 segments go indirect. Needs a
  // free slot and at most max_segments().
  void submit(uint8_t operation, uint64_t sector, const Segment* segments, size_t count,
              uint64_t tag);
  void submit_discard(uint64_t sector, uint64_t sectors, bool secure, uint64_t tag);
  // Publishes what submit() filled; one notify where the backend asked for it.
  void push();
  // Makes every read and write indirect (as long as max_segments() allows it at all).
  void always_indirect(bool on) { always_indirect_ = on; }

  // The next response, if there is one; else asks the backend for an event. A response that breaks
  // the protocol is noted in violations() and otherwise ignored.
  std::optional<Completion> next_response();
  // Hands every response there is to `done`; returns how many.
  template <typename F>
  size_t reap(F&& done) {
    size_t reaped = 0;
    for (; const auto completion = next_response(); ++reaped) done(*completion);
    return reaped;
  }
  // Sleeps until the backend notifies, without consuming responses. False: the deadline passed.
  bool wait(Deadline deadline);
  // Submits one request and waits for its own response; no other may be in flight.
  Result<int16_t> round_trip(uint8_t operation, uint64_t sector,
                             const std::vector<Segment>& segments, Deadline deadline);

  const std::vector<std::string>& violations() const { return violations_; }
  uint64_t notifies_sent() const { return notifies_sent_; }
  uint64_t events_received() const { return events_received_; }

  RawRing& raw() { return raw_; }
  int notify() { return events_->notify(port_); }
  EventChannels& events() { return *events_; }
  // Ends the grants of ring and indirect pages; false where the backend still holds one.
  bool end_grants();

 private:
  struct Shadow {
    uint64_t tag = 0;
    uint8_t operation = 0;  // as the response must name it
    bool busy = false;
    uint32_t generation = 0;
    std::vector<GrantRef> indirect_refs;
    std::byte* indirect_page = nullptr;
  };

  RingQueue(Guest& guest, const QueueOptions& options, Pages ring);
  uint32_t take_shadow(uint8_t response_operation, uint64_t tag);
  uint64_t id_of(uint32_t index) const {
    return uint64_t{shadows_[index].generation} << 32 | index;
  }
  bool look_for_responses();
  std::optional<Completion> take_response();
  void violation(std::string what);

  Guest& guest_;
  QueueOptions options_;
  Pages ring_;
  RawRing raw_;
  std::vector<GrantRef> ring_refs_;
  Pages indirect_pages_;
  std::unique_ptr<EventChannels> events_;
  EvtPort port_ = 0;
  std::vector<Shadow> shadows_;
  std::vector<uint32_t> free_ids_;
  uint32_t req_prod_ = 0;  // private
  uint32_t rsp_cons_ = 0;
  uint32_t rsp_seen_ = 0;  // responses up to here are known to be there
  bool always_indirect_ = false;
  bool granted_ = true;
  std::vector<std::string> violations_;
  uint64_t notifies_sent_ = 0;
  uint64_t events_received_ = 0;
};

}  // namespace vbdkit::sim
