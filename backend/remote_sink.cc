// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/remote_sink.h"

#include <utility>

namespace vbdkit {
namespace {

constexpr size_t kHopsPerChunk = 32;

}  // namespace

bool RemoteSink::Mailbox::push(Hop* first, Hop* last) {
  Hop* seen = newest_.load(std::memory_order_relaxed);
  do {
    first->link = seen;
  } while (!newest_.compare_exchange_weak(seen, last, std::memory_order_release,
                                          std::memory_order_relaxed));
  return seen == nullptr;
}

RemoteSink::Hop* RemoteSink::Mailbox::take_all() {
  Hop* newest = newest_.exchange(nullptr, std::memory_order_acquire);
  Hop* oldest = nullptr;
  while (newest != nullptr) {
    Hop* const older = newest->link;
    newest->link = oldest;
    oldest = std::exchange(newest, older);
  }
  return oldest;
}

RemoteSink::RemoteSink(io::Reactor& near, io::Reactor& far, RequestSink& target,
                       const drivers::NodeInfo& info)
    : near_(near), far_(far), target_(target), info_(info) {
  turn_.self = this;
  turn_.run = [](io::Deferred& d) { static_cast<Turn&>(d).self->send(); };
}

RemoteSink::~RemoteSink() = default;

RemoteSink::Hop& RemoteSink::take_hop() {
  if (free_ == nullptr) {
    chunks_.push_back(std::make_unique<Hop[]>(kHopsPerChunk));
    for (size_t i = 0; i < kHopsPerChunk; ++i) {
      Hop& hop = chunks_.back()[i];
      hop.owner = this;
      hop.done = [](drivers::Request& request, int error) {
        auto& mine = static_cast<Hop&>(request);
        RemoteSink& self = *mine.owner;
        mine.error = error;
        if (self.completions_.push(&mine, &mine)) self.near_.post([&self] { self.complete(); });
      };
      hop.link = free_;
      free_ = &hop;
    }
  }
  return *std::exchange(free_, free_->link);
}

void RemoteSink::submit(drivers::Request& request) {
  Hop& hop = take_hop();
  hop.origin = &request;
  hop.op = request.op;
  hop.flags = request.flags;
  hop.iov = request.iov;
  hop.iov_count = request.iov_count;
  hop.offset = request.offset;
  hop.length = request.length;
  // A chain from newest to oldest, as a Mailbox keeps them.
  hop.link = newest_outgoing_;
  newest_outgoing_ = &hop;
  if (oldest_outgoing_ == nullptr) oldest_outgoing_ = &hop;
  near_.defer(turn_);
}

void RemoteSink::send() {
  Hop* const oldest = std::exchange(oldest_outgoing_, nullptr);
  Hop* const newest = std::exchange(newest_outgoing_, nullptr);
  if (oldest != nullptr && requests_.push(oldest, newest)) far_.post([this] { receive(); });
}

// Behind what was submitted before.
void RemoteSink::hurry() {
  send();
  far_.post([&target = target_] { target.hurry(); });
}

void RemoteSink::receive() {
  for (Hop* hop = requests_.take_all(); hop != nullptr;) {
    Hop* const next = hop->link;  // the request may be on its way back already
    target_.submit(*hop);
    hop = next;
  }
}

void RemoteSink::complete() {
  for (Hop* hop = completions_.take_all(); hop != nullptr;) {
    Hop* const next = hop->link;
    drivers::Request& origin = *hop->origin;
    const int error = hop->error;
    hop->link = free_;
    free_ = hop;
    origin.done(origin, error);
    hop = next;
  }
}

void RemoteSink::set_info(const drivers::NodeInfo& info) {
  near_.post([this, info] { info_ = info; });
}

}  // namespace vbdkit
