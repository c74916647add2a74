// SPDX-License-Identifier: LGPL-2.1-or-later
//
// BackRing: the backend's half of a shared ring (xen/io/ring.h) of either slot layout.
//
// Thread: its queue's reactor. The ring's pages are mapped and owned elsewhere. The guest may write
// anything into them at any time: of what stands there only the producer index and whole slots are
// read, each once; how far we are is kept here.
#pragma once

#include <cstdint>
#include <cstring>

#include "backend/blkif/abi.h"

namespace vbdkit::blkif {

class BackRing {
 public:
  // `shared`: `bytes` of mapped ring. Starts where the shared response index stands: 0 in a fresh
  // ring.
  BackRing(void* shared, size_t bytes, const SlotLayout& layout)
      : shared_(static_cast<blkif_sring*>(shared)),
        slots_(static_cast<char*>(shared) + kRingHeader),
        layout_(&layout),
        size_(floor_pow2((bytes - kRingHeader) / layout.slot)),
        rsp_prod_(__atomic_load_n(&shared_->rsp_prod, __ATOMIC_RELAXED)),
        rsp_pushed_(rsp_prod_),
        req_cons_(rsp_prod_) {}

  uint32_t size() const { return size_; }
  uint32_t unanswered() const { return req_cons_ - rsp_prod_; }

  // Looks how many requests the guest has added. False where it claims more than the ring can hold:
  // it must not be read any further.
  bool look() {
    const uint32_t prod = __atomic_load_n(&shared_->req_prod, __ATOMIC_ACQUIRE);
    // Also a producer that went back below what was consumed is out of range.
    if (prod - rsp_prod_ > size_ || prod - rsp_prod_ < unanswered()) return false;
    req_seen_ = prod;
    return true;
  }
  bool has_request() const { return req_seen_ != req_cons_; }

  // Copies the next request that look() saw, once: the words are read as volatile, so that no
  // later use of the copy can become another read of the ring.
  void take(SlotCopy& copy) {
    const auto* from = reinterpret_cast<const volatile uint32_t*>(slot(req_cons_));
    auto* to = reinterpret_cast<uint32_t*>(copy.bytes.data());
    for (size_t i = 0; i < layout_->slot / sizeof(uint32_t); ++i) to[i] = from[i];
    ++req_cons_;
  }

  // Writes a response where the guest sees it after push().
  void respond(uint64_t id, uint8_t operation, int16_t status) {
    // Whole and zeroed: padding would tell the guest what is in our memory (XSA-216).
    char response[16] = {};
    memcpy(response, &id, sizeof id);
    memcpy(response + 8, &operation, sizeof operation);
    memcpy(response + 10, &status, sizeof status);
    memcpy(slot(rsp_prod_), response, layout_->response);
    ++rsp_prod_;
  }

  bool has_responses_to_push() const { return rsp_prod_ != rsp_pushed_; }

  // Publishes the responses written since. True: the guest wants to be notified.
  bool push() {
    const uint32_t old = rsp_pushed_;
    rsp_pushed_ = rsp_prod_;
    __atomic_store_n(&shared_->rsp_prod, rsp_prod_, __ATOMIC_RELEASE);
    // The guest sees the responses before we look whether it sleeps.
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    const uint32_t event = __atomic_load_n(&shared_->rsp_event, __ATOMIC_RELAXED);
    return rsp_prod_ - event < rsp_prod_ - old;
  }

  // Asks for an event with the next request. True: one has come meanwhile, so look() again.
  bool ask_for_event() {
    __atomic_store_n(&shared_->req_event, req_cons_ + 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return __atomic_load_n(&shared_->req_prod, __ATOMIC_RELAXED) != req_cons_;
  }

 private:
  static uint32_t floor_pow2(size_t n) {
    uint32_t p = 1;
    while (size_t{p} * 2 <= n) p *= 2;
    return p;
  }
  char* slot(uint32_t index) const { return slots_ + (index & (size_ - 1)) * layout_->slot; }

  blkif_sring* shared_;
  char* slots_;
  const SlotLayout* layout_;
  uint32_t size_;        // slots, a power of two
  uint32_t rsp_prod_;    // responses written
  uint32_t rsp_pushed_;  // responses published
  uint32_t req_cons_;    // requests taken
  uint32_t req_seen_ = req_cons_;
};

}  // namespace vbdkit::blkif
