// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests: a reactor for file operations alone that behaves as badly as the system calls may. It
// cuts transfers short, interrupts them, completes in any order, refuses direct I/O at first use
// and has no fallocate(2) where it is told so. One thread.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <random>
#include <vector>

#include "io/reactor.h"

namespace vbdkit::drivers {

class CapriciousReactor final : public io::Reactor {
 public:
  struct Mood {
    bool refuses_direct = false;
    bool refuses_punch = false;
    bool refuses_zero_range = false;
  };

  CapriciousReactor(uint64_t seed, Mood mood) : rng_(seed), mood_(mood) {}

  Result<void> run() override {
    while (!stop_ && !queue_.empty()) {
      std::swap(queue_[rng_() % queue_.size()], queue_.back());
      io::FileOp& op = *queue_.back();
      queue_.pop_back();
      op.done(op, execute(op));
    }
    stop_ = false;
    return {};
  }
  void submit(io::FileOp& op) override { queue_.push_back(&op); }
  void submit(io::SocketOp&) override {}
  void defer(io::Deferred&) override {}
  std::unique_ptr<io::FdWatch> watch(int, std::function<void()>) override { return nullptr; }
  std::unique_ptr<io::Timer> timer(std::function<void()>) override { return nullptr; }
  void post(std::function<void()>) override {}
  void stop() override { stop_ = true; }
  const char* engine_name() const override { return "capricious"; }
  const io::ReactorCounters& counters() const override { return counters_; }

 private:
  int64_t execute(const io::FileOp& op) {
    switch (rng_() % 16) {
      case 0:
        return -EINTR;
      case 1:
        return -EAGAIN;
      default:
        break;
    }
    switch (op.kind) {
      case io::FileOp::Kind::kRead:
      case io::FileOp::Kind::kWrite:
        return transfer(op);
      case io::FileOp::Kind::kDataSync:
        return answer(fdatasync(op.fd));
      case io::FileOp::Kind::kFallocate:
        if ((op.fallocate_mode & FALLOC_FL_PUNCH_HOLE) && mood_.refuses_punch) return -EOPNOTSUPP;
        if ((op.fallocate_mode & FALLOC_FL_ZERO_RANGE) && mood_.refuses_zero_range)
          return -EOPNOTSUPP;
        return answer(fallocate(op.fd, op.fallocate_mode, static_cast<off_t>(op.offset),
                                static_cast<off_t>(op.length)));
    }
    return -ENOSYS;
  }

  int64_t transfer(const io::FileOp& op) {
    const bool direct = (fcntl(op.fd, F_GETFL) & O_DIRECT) != 0;
    if (direct && mood_.refuses_direct) return -EINVAL;
    std::vector<iovec> iov(op.iov, op.iov + op.iov_count);
    uint64_t left = UINT64_MAX;
    // A part of it, in whole pages where direct I/O could not stop elsewhere.
    if (rng_() % 3 == 0) left = direct ? 4096 * (1 + rng_() % 8) : 1 + rng_() % 20000;
    for (iovec& piece : iov) {
      piece.iov_len = static_cast<size_t>(std::min<uint64_t>(piece.iov_len, left));
      left -= piece.iov_len;
    }
    const auto count = static_cast<int>(iov.size());
    const auto offset = static_cast<off_t>(op.offset);
    return answer(op.kind == io::FileOp::Kind::kRead
                      ? preadv2(op.fd, iov.data(), count, offset, op.rw_flags)
                      : pwritev2(op.fd, iov.data(), count, offset, op.rw_flags));
  }

  static int64_t answer(ssize_t r) { return r < 0 ? -errno : r; }

  std::mt19937_64 rng_;
  const Mood mood_;
  std::vector<io::FileOp*> queue_;
  bool stop_ = false;
  io::ReactorCounters counters_;
};

}  // namespace vbdkit::drivers
