// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A listening unix socket of servers that greet their clients, and its file: mode 0600 from the
// first moment whatever the umask, takes the place of a dead server's socket but never of a living
// one's, and removes its file at the end if it is still the same. Move-only; any thread.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace vbdkit::nbd {

class UnixListener {
 public:
  [[gnu::cold]] static Result<UnixListener> create(const std::string& path);
  UnixListener(UnixListener&&) noexcept = default;
  UnixListener& operator=(UnixListener&&) = delete;
  ~UnixListener() { remove_file(); }

  int fd() const { return socket_.get(); }
  const std::string& path() const { return path_; }
  void remove_file();

 private:
  UnixListener(Fd socket, std::string path, dev_t device, ino_t inode)
      : socket_(std::move(socket)), path_(std::move(path)), device_(device), inode_(inode) {}

  Fd socket_;
  std::string path_;  // empty: moved from, or removed already
  dev_t device_;
  ino_t inode_;
};

}  // namespace vbdkit::nbd
