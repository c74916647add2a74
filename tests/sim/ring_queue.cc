// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/ring_queue.h"

#include <algorithm>
#include <cstring>

namespace vbdkit::sim {
namespace {

constexpr size_t kSegmentsPerIndirectPage = kPageSize / sizeof(blkif_request_segment);

blkif_request_segment wire(const Segment& s) {
  blkif_request_segment out{};
  out.gref = s.ref;
  out.first_sect = s.first_sector;
  out.last_sect = s.last_sector;
  return out;
}

}  // namespace

RingQueue::RingQueue(Guest& guest, const QueueOptions& options, Pages ring)
    : guest_(guest), options_(options), ring_(ring), raw_(ring.data, options.abi, options.order) {}

Result<std::unique_ptr<RingQueue>> RingQueue::create(Guest& guest, const QueueOptions& options) {
  VBDKIT_ASSIGN(const Pages ring, guest.alloc_pages(1U << options.order));
  std::unique_ptr<RingQueue> queue(new RingQueue(guest, options, ring));
  // SHARED_RING_INIT: the first request and the first response each deserve an event.
  queue->raw_.req_event().store(1);
  queue->raw_.rsp_event().store(1);
  for (uint32_t i = 0; i < ring.count; ++i) {
    VBDKIT_ASSIGN(const GrantRef ref, guest.grant_page(ring.first + i, true));
    queue->ring_refs_.push_back(ref);
  }
  const uint32_t slots = queue->raw_.slots();
  queue->shadows_.resize(slots);
  for (uint32_t i = slots; i-- != 0;) queue->free_ids_.push_back(i);
  if (options.max_segments > BLKIF_MAX_SEGMENTS_PER_REQUEST) {
    const auto pages = static_cast<uint32_t>((options.max_segments + kSegmentsPerIndirectPage - 1) /
                                             kSegmentsPerIndirectPage);
    if (pages > BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST)
      return Error(ErrorKind::kInvalid, "frontend: too many indirect segments");
    VBDKIT_ASSIGN(queue->indirect_pages_, guest.alloc_pages(pages * slots));
    for (uint32_t i = 0; i < slots; ++i) {
      Shadow& shadow = queue->shadows_[i];
      shadow.indirect_page = queue->indirect_pages_.data + size_t{i} * pages * kPageSize;
      for (uint32_t p = 0; p < pages; ++p) {
        VBDKIT_ASSIGN(const GrantRef ref,
                      guest.grant_page(queue->indirect_pages_.first + i * pages + p, false));
        shadow.indirect_refs.push_back(ref);
      }
    }
  }
  VBDKIT_ASSIGN(queue->events_, guest.open_events());
  VBDKIT_ASSIGN(queue->port_, queue->events_->bind_unbound(0));
  return queue;
}

RingQueue::~RingQueue() {
  if (granted_) (void)end_grants();
}

bool RingQueue::end_grants() {
  bool all = true;
  const auto end = [&](const std::vector<GrantRef>& refs) {
    for (const GrantRef ref : refs) {
      if (guest_.grants().end_access(ref))
        guest_.free_ref(ref);
      else
        all = false;
    }
  };
  end(ring_refs_);
  for (const auto& shadow : shadows_) end(shadow.indirect_refs);
  // Pages that a backend still maps are never given to anybody else.
  if (all) {
    guest_.free_pages(ring_);
    if (indirect_pages_.count != 0) guest_.free_pages(indirect_pages_);
  }
  granted_ = false;
  return all;
}

uint32_t RingQueue::take_shadow(uint8_t response_operation, uint64_t tag) {
  const uint32_t index = free_ids_.back();
  free_ids_.pop_back();
  Shadow& shadow = shadows_[index];
  shadow.tag = tag;
  shadow.operation = response_operation;
  shadow.busy = true;
  ++shadow.generation;
  return index;
}

void RingQueue::submit(uint8_t operation, uint64_t sector, const Segment* segments, size_t count,
                       uint64_t tag) {
  const SlotLayout& at = raw_.layout();
  const uint32_t slot = req_prod_++;
  const bool indirect = count > BLKIF_MAX_SEGMENTS_PER_REQUEST ||
                        (always_indirect_ && indirect_pages_.count != 0 && count != 0 &&
                         (operation == BLKIF_OP_READ || operation == BLKIF_OP_WRITE));
  if (!indirect) {
    const uint32_t index = take_shadow(operation, tag);
    raw_.put<uint8_t>(slot, at.operation, operation);
    raw_.put<uint8_t>(slot, at.nr_segments, static_cast<uint8_t>(count));
    raw_.put<uint16_t>(slot, at.handle, options_.handle);
    raw_.put<uint64_t>(slot, at.id, id_of(index));
    raw_.put<uint64_t>(slot, at.sector, sector);
    for (size_t i = 0; i < count; ++i)
      raw_.put(slot, at.segments + i * sizeof(blkif_request_segment), wire(segments[i]));
    return;
  }
  // The answer names what the request stands for, not that it was indirect: so Linux' blkback does,
  // and its blkfront takes a disk offline that answers otherwise.
  const uint32_t index = take_shadow(operation, tag);
  const Shadow& shadow = shadows_[index];
  for (size_t i = 0; i < count; ++i) {
    const blkif_request_segment s = wire(segments[i]);
    std::memcpy(shadow.indirect_page + i * sizeof s, &s, sizeof s);
  }
  raw_.put<uint8_t>(slot, at.operation, BLKIF_OP_INDIRECT);
  raw_.put<uint8_t>(slot, at.ind_op, operation);
  raw_.put<uint16_t>(slot, at.ind_nr_segments, static_cast<uint16_t>(count));
  raw_.put<uint64_t>(slot, at.ind_id, id_of(index));
  raw_.put<uint64_t>(slot, at.ind_sector, sector);
  raw_.put<uint16_t>(slot, at.ind_handle, options_.handle);
  const size_t pages = (count + kSegmentsPerIndirectPage - 1) / kSegmentsPerIndirectPage;
  for (size_t p = 0; p < pages; ++p)
    raw_.put<uint32_t>(slot, at.ind_refs + p * sizeof(GrantRef), shadow.indirect_refs[p]);
}

void RingQueue::submit_discard(uint64_t sector, uint64_t sectors, bool secure, uint64_t tag) {
  const SlotLayout& at = raw_.layout();
  const uint32_t slot = req_prod_++;
  const uint32_t index = take_shadow(BLKIF_OP_DISCARD, tag);
  raw_.put<uint8_t>(slot, at.operation, BLKIF_OP_DISCARD);
  raw_.put<uint8_t>(slot, at.discard_flag, secure ? uint8_t{BLKIF_DISCARD_SECURE} : uint8_t{0});
  raw_.put<uint16_t>(slot, at.handle, options_.handle);
  raw_.put<uint64_t>(slot, at.id, id_of(index));
  raw_.put<uint64_t>(slot, at.sector, sector);
  raw_.put<uint64_t>(slot, at.discard_sectors, sectors);
}

// RING_PUSH_REQUESTS_AND_CHECK_NOTIFY: the backend must see the slots before the index, and we must
// read req_event after it has seen the index, or both sides might sleep.
void RingQueue::push() {
  const uint32_t old = raw_.req_prod().load(std::memory_order_relaxed);
  if (old == req_prod_) return;
  raw_.req_prod().store(req_prod_, std::memory_order_seq_cst);
  const uint32_t event = raw_.req_event().load(std::memory_order_seq_cst);
  if (req_prod_ - event < req_prod_ - old) {
    ++notifies_sent_;
    notify();
  }
}

void RingQueue::violation(std::string what) {
  if (violations_.size() < 32) violations_.push_back(std::move(what));
}

bool RingQueue::look_for_responses() {
  const uint32_t rsp_prod = raw_.rsp_prod().load(std::memory_order_seq_cst);
  if (rsp_prod - rsp_cons_ > req_prod_ - rsp_cons_) {
    violation("rsp_prod " + std::to_string(rsp_prod) + " is beyond what was asked");
    return false;
  }
  rsp_seen_ = rsp_prod;
  return rsp_seen_ != rsp_cons_;
}

std::optional<Completion> RingQueue::next_response() {
  for (;;) {
    if (rsp_cons_ == rsp_seen_ && !look_for_responses()) {
      // RING_FINAL_CHECK_FOR_RESPONSES: ask for an event, then look once more.
      raw_.rsp_event().store(rsp_cons_ + 1, std::memory_order_seq_cst);
      if (!look_for_responses()) return std::nullopt;
    }
    if (const auto completion = take_response()) return completion;
  }
}

std::optional<Completion> RingQueue::take_response() {
  const SlotLayout& at = raw_.layout();
  const uint32_t slot = rsp_cons_++;
  const auto id = raw_.get<uint64_t>(slot, at.rsp_id);
  const auto operation = raw_.get<uint8_t>(slot, at.rsp_operation);
  const auto padding = raw_.get<uint8_t>(slot, at.rsp_operation + 1);
  const auto status = raw_.get<int16_t>(slot, at.rsp_status);
  const auto index = static_cast<uint32_t>(id);
  if (index >= shadows_.size() || !shadows_[index].busy || id_of(index) != id) {
    violation("response with id " + std::to_string(id) + ", which is not in flight");
    return std::nullopt;
  }
  Shadow& shadow = shadows_[index];
  if (operation != shadow.operation)
    violation("response names operation " + std::to_string(operation) + ", the request was " +
              std::to_string(shadow.operation));
  const bool clean = padding == 0 && (at.rsp_size == 12 || raw_.get<uint32_t>(slot, 12) == 0);
  if (options_.padding_zero && !clean) violation("response padding is not zero");
  if (status != BLKIF_RSP_OKAY && status != BLKIF_RSP_ERROR && status != BLKIF_RSP_EOPNOTSUPP)
    violation("response status " + std::to_string(status));
  shadow.busy = false;
  free_ids_.push_back(index);
  return Completion{shadow.tag, shadow.operation, status};
}

bool RingQueue::wait(Deadline deadline) {
  for (;;) {
    if (!events_->wait(deadline)) return false;
    const auto pending = events_->pending();
    if (pending.error != 0) continue;
    ++events_received_;
    events_->unmask(pending.port);
    return true;
  }
}

Result<int16_t> RingQueue::round_trip(uint8_t operation, uint64_t sector,
                                      const std::vector<Segment>& segments, Deadline deadline) {
  if (free_slots() == 0) return Error(ErrorKind::kBusy, "frontend: the ring is full");
  if (segments.size() > options_.max_segments)
    return Error(ErrorKind::kInvalid, "frontend: more segments than the queue can carry");
  submit(operation, sector, segments.data(), segments.size(), 0);
  push();
  int16_t status = 0;
  while (reap([&](const Completion& c) { status = c.status; }) == 0) {
    if (!violations_.empty())
      return Error(ErrorKind::kProtocol, "frontend: " + violations_.front());
    if (!wait(deadline)) return Error(ErrorKind::kTimedOut, "frontend: no response");
  }
  return status;
}

}  // namespace vbdkit::sim
