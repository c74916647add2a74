// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Fd owns one file descriptor and closes it. Move-only; any thread.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <string>
#include <utility>

#include "base/result.h"

namespace vbdkit {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& o) noexcept : fd_(std::exchange(o.fd_, -1)) {}
  Fd& operator=(Fd&& o) noexcept {
    if (this != &o) {
      reset();
      fd_ = std::exchange(o.fd_, -1);
    }
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { reset(); }

  // O_CLOEXEC is always added. The error reads "open PATH: reason".
  static Result<Fd> open(const std::string& path, int flags, mode_t mode = 0);
  static Result<Fd> eventfd();

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset();

 private:
  int fd_ = -1;
};

}  // namespace vbdkit
