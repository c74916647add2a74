// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A first-in first-out queue of requests, linked through Request::next: it allocates nothing. For
// the node that has the requests.
#pragma once

#include "drivers/node.h"

namespace vbdkit::drivers {

class RequestQueue {
 public:
  RequestQueue() = default;
  RequestQueue(const RequestQueue&) = delete;
  RequestQueue& operator=(const RequestQueue&) = delete;

  bool empty() const { return head_ == nullptr; }
  Request* front() const { return head_; }
  // nullptr where it is empty.
  Request* back() const { return last_; }

  void push(Request& request) {
    request.next = nullptr;
    *tail_ = &request;
    tail_ = &request.next;
    last_ = &request;
  }

  // Not on an empty queue.
  Request& pop() {
    Request& request = *head_;
    head_ = request.next;
    if (head_ == nullptr) {
      tail_ = &head_;
      last_ = nullptr;
    }
    return request;
  }

 private:
  Request* head_ = nullptr;
  Request** tail_ = &head_;
  Request* last_ = nullptr;
};

}  // namespace vbdkit::drivers
