// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Command: one NBD command from the request that caused it until nothing of it is needed any more,
// which for a write is when a flush has covered it. Commands come from a pool of the node's and are
// linked into exactly one list at a time, so that nothing is allocated on the way of a request.
// The reactor's thread.
#pragma once

#include <cstdint>

#include "base/buffer_pool.h"
#include "drivers/node.h"

namespace vbdkit::drivers::nbd {

class Connection;

struct Command {
  enum class Kind : uint8_t {
    kRequest,  // of `request`
    kStatus,   // of `status`
    kSync,     // a flush that nobody asked for: it makes room for further unflushed writes
    kReplay,   // sends `replayed` again
  };

  Kind kind = Kind::kRequest;
  Op op = Op::kRead;
  uint8_t flags = 0;
  bool prepared = false;  // `data` is set
  int error = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
  Request* request = nullptr;
  StatusRequest* status = nullptr;
  Command* replayed = nullptr;
  BufferPool::Buffer buffer;  // where the request's vector cannot be used, or not for long enough
  void* data = nullptr;       // kRead, kWrite: what the server's bytes go to or come from
  uint64_t cost = 0;          // bytes counted against the memory for unflushed writes
  uint64_t sequence = 0;      // of an unflushed write; of a flush: the last write that it covers
  Connection* connection = nullptr;  // while sent
  Command* previous = nullptr;
  Command* next = nullptr;

  bool changes() const { return op != Op::kRead && op != Op::kFlush; }
  bool overlaps(const Command& o) const {
    return offset < o.offset + o.length && o.offset < offset + length;
  }
};

// First in, first out; any can be taken out.
class CommandList {
 public:
  CommandList() = default;
  CommandList(const CommandList&) = delete;
  CommandList& operator=(const CommandList&) = delete;

  bool empty() const { return head_ == nullptr; }
  Command* front() const { return head_; }

  void push_back(Command& c) {
    c.previous = tail_;
    c.next = nullptr;
    (tail_ == nullptr ? head_ : tail_->next) = &c;
    tail_ = &c;
  }
  void push_front(Command& c) {
    c.previous = nullptr;
    c.next = head_;
    (head_ == nullptr ? tail_ : head_->previous) = &c;
    head_ = &c;
  }
  void remove(Command& c) {
    (c.previous == nullptr ? head_ : c.previous->next) = c.next;
    (c.next == nullptr ? tail_ : c.next->previous) = c.previous;
  }
  Command& pop_front() {
    Command& c = *head_;
    remove(c);
    return c;
  }
  Command& pop_back() {
    Command& c = *tail_;
    remove(c);
    return c;
  }

 private:
  Command* head_ = nullptr;
  Command* tail_ = nullptr;
};

}  // namespace vbdkit::drivers::nbd
