// SPDX-License-Identifier: LGPL-2.1-or-later
//
// RequestPool: the requests that a node sends on in place of those it was given, where it has to
// know when they are done. They are used again, so that nothing is allocated once there are as many
// as the load needs at one time. T derives from Request, whose `next` links the idle ones.
// Owned by the node, which outlives what it sent; the reactor's thread.
#pragma once

#include <memory>
#include <vector>

#include "drivers/node.h"

namespace vbdkit::drivers {

template <typename T>
class RequestPool {
 public:
  RequestPool() = default;
  RequestPool(const RequestPool&) = delete;
  RequestPool& operator=(const RequestPool&) = delete;

  T& take() {
    if (idle_ == nullptr) {
      all_.push_back(std::make_unique<T>());
      return *all_.back();
    }
    T& request = static_cast<T&>(*idle_);
    idle_ = request.next;
    return request;
  }

  void give(T& request) {
    request.next = idle_;
    idle_ = &request;
  }

 private:
  std::vector<std::unique_ptr<T>> all_;
  Request* idle_ = nullptr;
};

// Makes `to` ask for the same as `from`.
inline void copy_request(const Request& from, Request& to) {
  to.op = from.op;
  to.flags = from.flags;
  to.iov = from.iov;
  to.iov_count = from.iov_count;
  to.offset = from.offset;
  to.length = from.length;
}

}  // namespace vbdkit::drivers
