// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Slot: one command of an NBD client from its header to the end of its reply's send. It is the
// request that the sink gets, so that a command needs no other memory. Internal to the connection,
// which owns all its slots and uses them again; thread: the reactor's.
#pragma once

#include <memory>
#include <vector>

#include "backend/nbd/protocol.h"
#include "base/buffer_pool.h"
#include "drivers/node.h"

namespace vbdkit::nbd {

class Connection;

// A block status question and its answer, as it will be sent.
struct StatusWork {
  drivers::StatusRequest question;
  std::vector<uint8_t> chunks;
};

struct Slot : drivers::Request {
  Connection* connection = nullptr;
  Slot* next_slot = nullptr;  // in the connection's lists

  RequestHeader header;
  WireError refused = WireError::kNone;  // of a write whose data still has to be taken in
  BufferPool::Buffer buffer;
  iovec data{};             // in `buffer`
  uint32_t data_bytes = 0;  // counted against the connection's limit

  // The reply: header_bytes of `reply`, then reply_data.
  uint8_t reply_header[kMaxReplyHeaderSize];
  uint32_t header_bytes = 0;
  iovec reply_data{};

  uint32_t cached = 0;  // bytes of a CACHE command already read
  std::unique_ptr<StatusWork> status;

  Command command() const { return static_cast<Command>(header.command); }
};

}  // namespace vbdkit::nbd
