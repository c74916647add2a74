// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/nbd/connection.h"

#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <new>

#include "backend/nbd/slot.h"

namespace vbdkit::nbd {
namespace {

// Room for 60 writes of 4 KiB in one receive; only touched pages cost memory.
constexpr size_t kRxBytes = size_t{256} << 10;
static_assert(kRxBytes > kMaxOptionData + 64);
// After a large write another is likely: asking for little beyond its data leaves the next one's
// data in the socket, from where it goes straight into its buffer.
constexpr size_t kRxBehindLargeWrite = 4096;
constexpr uint32_t kLargeWrite = 64 << 10;

// One send carries at most so much, so that buffers return while the next is under way.
constexpr size_t kMaxSendIov = 512;
constexpr size_t kMaxSendBytes = size_t{1} << 20;

}  // namespace

void SlotList::push(Slot& slot) {
  slot.next_slot = nullptr;
  if (tail != nullptr)
    tail->next_slot = &slot;
  else
    head = &slot;
  tail = &slot;
}

Slot* SlotList::pop() {
  Slot* slot = head;
  if (slot == nullptr) return nullptr;
  head = slot->next_slot;
  if (head == nullptr) tail = nullptr;
  return slot;
}

Connection::Connection(ServerContext& server, Fd socket)
    : server_(server), socket_(std::move(socket)), rx_limit_(kRxBytes) {
  recv_msg_.msg_iov = recv_iov_;
  recv_op_.kind = io::SocketOp::Kind::kRecv;
  recv_op_.fd = socket_.get();
  recv_op_.msg = &recv_msg_;
  recv_op_.connection = this;
  recv_op_.done = [](io::SocketOp& op, int64_t result) {
    static_cast<RecvOp&>(op).connection->received(result);
  };
  send_op_.kind = io::SocketOp::Kind::kSend;
  send_op_.fd = socket_.get();
  send_op_.flags = MSG_WAITALL;  // not to come back after a part
  send_op_.msg = &send_msg_;
  send_op_.connection = this;
  send_op_.done = [](io::SocketOp& op, int64_t result) {
    static_cast<SendOp&>(op).connection->sent(result);
  };
  flush_.connection = this;
  flush_.run = [](io::Deferred& d) { static_cast<Flush&>(d).connection->flush(); };
}

Connection::~Connection() {
  if (rx_ != nullptr) ::munmap(rx_, kRxBytes);
}

void Connection::start() {
  void* p = ::mmap(nullptr, kRxBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) {
    reject("no memory to serve it");
    return;
  }
  rx_ = static_cast<uint8_t*>(p);
  negotiation_.emplace(server_.describe());
  negotiation_->greet(output_);
  deadline_ = server_.reactor.timer([this] { reject("it did not finish the handshake in time"); });
  deadline_->arm(io::Timer::Clock::now() + server_.options.handshake_timeout);
  server_.reactor.defer(flush_);
  receive();
}

void Connection::drain() {
  if (phase_ == Phase::kHandshake) {
    close();
  } else if (phase_ == Phase::kTransmission) {
    phase_ = Phase::kDraining;
    // A write of which a part is missing was never begun; the pending receive has its buffer.
    ::shutdown(socket_.get(), SHUT_RD);
    drop_payload();
    server_.reactor.defer(flush_);
  }
}

void Connection::drop_payload() {
  if (payload_ != nullptr && !receiving_) free_slot(*std::exchange(payload_, nullptr));
}

void Connection::abort() { close(); }

void Connection::trim() {
  if (busy() || rx_ == nullptr) return;
  // The kernel may be waiting to receive into these pages: it finds fresh ones.
  ::madvise(rx_, kRxBytes, MADV_DONTNEED);
  slot_blocks_.clear();
  slot_blocks_.shrink_to_fit();
  free_slots_ = nullptr;
  if (!sending_now_) {
    send_iov_.clear();
    send_iov_.shrink_to_fit();
  }
}

void Connection::receive() {
  if (receiving_ || stalled_ || phase_ >= Phase::kDraining) return;
  if (rx_begin_ > 0) {
    std::memmove(rx_, rx_ + rx_begin_, rx_end_ - rx_begin_);
    rx_end_ -= std::exchange(rx_begin_, 0);
  }
  size_t n = 0;
  if (payload_ != nullptr && payload_->buffer)
    recv_iov_[n++] = {payload_->buffer.data() + payload_have_,
                      payload_->header.length - payload_have_};
  recv_iov_[n++] = {rx_ + rx_end_, std::min(rx_limit_, kRxBytes - rx_end_)};
  recv_msg_.msg_iovlen = n;
  receiving_ = true;
  server_.reactor.submit(recv_op_);
}

void Connection::received(int64_t result) {
  receiving_ = false;
  ++server_.stats.receives;
  if (phase_ >= Phase::kDraining) {
    drop_payload();
    server_.reactor.defer(flush_);
    return;
  }
  if (result == -EINTR || result == -EAGAIN) {
    receive();
    return;
  }
  if (result <= 0) {
    close();
    return;
  }
  auto n = static_cast<size_t>(result);
  if (payload_ != nullptr && payload_->buffer) {
    const size_t direct = std::min<size_t>(n, payload_->header.length - payload_have_);
    payload_have_ += direct;
    n -= direct;
  }
  rx_end_ += n;
  process();
}

void Connection::process() {
  bool more = true;
  while (more && phase_ < Phase::kDraining)
    more = phase_ == Phase::kHandshake ? negotiate()
           : payload_ != nullptr       ? take_payload()
                                       : take_request();
  receive();
}

// One option at a time: the next is looked at when the answer to the last is sent, so a client
// that does not read its answers cannot make them pile up.
bool Connection::negotiate() {
  if (sending_now_ || !output_.empty()) return false;
  const auto step = negotiation_->step({rx_ + rx_begin_, rx_end_ - rx_begin_}, output_);
  rx_begin_ += step.consumed;
  if (!output_.empty()) server_.reactor.defer(flush_);
  switch (step.state) {
    case Negotiation::State::kMore:
      return step.consumed > 0;
    case Negotiation::State::kTransmission:
      structured_ = negotiation_->structured();
      select_contexts();
      negotiation_.reset();
      deadline_.reset();
      phase_ = Phase::kTransmission;
      return true;
    case Negotiation::State::kAborted:
      deadline_.reset();
      phase_ = Phase::kDraining;
      return false;
    case Negotiation::State::kBroken:
      reject(negotiation_->why());
      return false;
  }
  return false;
}

void Connection::select_contexts() {
  constexpr std::string_view kPrefix = kDirtyContextPrefix;
  for (const uint32_t id : negotiation_->contexts()) {
    const std::string& name = negotiation_->context_name(id);
    contexts_.push_back({id, name.starts_with(kPrefix) ? name.substr(kPrefix.size()) : ""});
  }
}

bool Connection::take_payload() {
  Slot& slot = *payload_;
  const size_t missing = slot.header.length - payload_have_;
  const size_t n = std::min(missing, rx_end_ - rx_begin_);
  if (slot.buffer && n > 0) std::memcpy(slot.buffer.data() + payload_have_, rx_ + rx_begin_, n);
  rx_begin_ += n;
  payload_have_ += n;
  if (n < missing) return false;
  payload_ = nullptr;
  if (slot.refused != WireError::kNone)
    reply(slot, slot.refused);
  else
    begin(slot);
  return true;
}

bool Connection::take_request() {
  if (rx_end_ - rx_begin_ < kRequestSize) return false;
  const auto header =
      decode_request(std::span<const uint8_t, kRequestSize>(rx_ + rx_begin_, kRequestSize));
  if (!header) {
    reject("bad request magic");
    return false;
  }
  const auto command = static_cast<Command>(header->command);
  if (command == Command::kDisc) {
    phase_ = Phase::kDraining;
    server_.reactor.defer(flush_);
    return false;
  }
  if (command == Command::kWrite && header->length > kMaxPayload) {
    reject("write longer than the maximum");
    return false;
  }
  const bool carries = command == Command::kRead || command == Command::kWrite;
  const uint64_t bytes = carries && header->length <= kMaxPayload ? header->length : 0;
  if (in_flight_ >= server_.options.max_requests ||
      (in_flight_ > 0 && bytes_in_flight_ + bytes > server_.options.max_bytes)) {
    stalled_ = true;
    return false;
  }

  rx_begin_ += kRequestSize;
  Slot& slot = take_slot(*header);
  slot.refused = check_request(*header, limits());
  if (command == Command::kWrite) {
    rx_limit_ = header->length >= kLargeWrite ? kRxBehindLargeWrite : kRxBytes;
    if (slot.refused == WireError::kNone && !take_buffer(slot, header->length))
      slot.refused = WireError::kNoMem;
    payload_ = &slot;
    payload_have_ = 0;
  } else if (slot.refused != WireError::kNone) {
    reply(slot, slot.refused);
  } else {
    begin(slot);
  }
  return true;
}

// Once per turn, after whatever completed in it.
void Connection::flush() {
  if (!sending_now_ && phase_ != Phase::kClosed) {
    if (!output_.empty()) {
      send_iov_.assign(1, {output_.data(), output_.size()});
    } else if (!ready_.empty()) {
      gather_replies();
    }
    if (!send_iov_.empty()) {
      send_msg_.msg_iov = send_iov_.data();
      send_msg_.msg_iovlen = send_iov_.size();
      sending_now_ = true;
      ++server_.stats.sends;
      server_.reactor.submit(send_op_);
    }
  }
  finish_if_done();
}

void Connection::gather_replies() {
  size_t bytes = 0;
  while (!ready_.empty() && send_iov_.size() + 2 <= kMaxSendIov && bytes < kMaxSendBytes) {
    Slot& slot = *ready_.pop();
    if (slot.header_bytes > 0) send_iov_.push_back({slot.reply_header, slot.header_bytes});
    if (slot.reply_data.iov_len > 0) send_iov_.push_back(slot.reply_data);
    bytes += slot.header_bytes + slot.reply_data.iov_len;
    sending_.push(slot);
  }
}

void Connection::sent(int64_t result) {
  if (result == -EINTR || result == -EAGAIN) result = 0;
  if (result < 0 || phase_ == Phase::kClosed) {
    close();
    send_done();
    return;
  }
  auto n = static_cast<size_t>(result);
  while (send_msg_.msg_iovlen > 0 && n >= send_msg_.msg_iov->iov_len) {
    n -= send_msg_.msg_iov->iov_len;
    ++send_msg_.msg_iov;
    --send_msg_.msg_iovlen;
  }
  if (send_msg_.msg_iovlen > 0) {
    send_msg_.msg_iov->iov_base = static_cast<uint8_t*>(send_msg_.msg_iov->iov_base) + n;
    send_msg_.msg_iov->iov_len -= n;
    server_.reactor.submit(send_op_);
    return;
  }
  send_done();
}

void Connection::send_done() {
  sending_now_ = false;
  send_iov_.clear();
  output_.clear();
  while (Slot* slot = sending_.pop()) free_slot(*slot);
  if (!ready_.empty() || phase_ >= Phase::kDraining) server_.reactor.defer(flush_);
  if (std::exchange(stalled_, false) || phase_ == Phase::kHandshake) process();
}

void Connection::reject(const char* why) {
  if (phase_ == Phase::kClosed) return;
  ++server_.stats.rejected;
  server_.log.limited(server_.log_limit, LogLevel::kWarning, "nbd: %s: client dropped: %s",
                      server_.options.path.c_str(), why);
  close();
}

void Connection::close() {
  if (phase_ == Phase::kClosed) return;
  phase_ = Phase::kClosed;
  deadline_.reset();
  // Ends the operations that are pending; what was sent already can still be read.
  ::shutdown(socket_.get(), SHUT_RDWR);
  drop_payload();
  while (Slot* slot = ready_.pop()) free_slot(*slot);
  server_.reactor.defer(flush_);
}

// Only from flush(), when nothing of this connection is queued any more.
void Connection::finish_if_done() {
  const bool quiet = !sending_now_ && in_flight_ == 0;
  if (phase_ == Phase::kDraining && quiet && output_.empty()) close();
  if (phase_ != Phase::kClosed || !quiet || receiving_ || flush_.queued || finished_) return;
  finished_ = true;
  server_.closed(*this);
}

}  // namespace vbdkit::nbd
