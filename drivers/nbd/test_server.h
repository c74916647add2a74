// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests: a real NBD server (nbdkit, qemu-nbd) on a file of its own, that can be killed and
// started again. Starting returns when it can be connected to, killing when it is dead.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/fd.h"

namespace vbdkit::drivers::nbd {

class TestServer {
 public:
  // The words of a command line, where {file} stands for the path of the file, {socket}
  // for that of the socket and {pid} for that of the file for its process id.
  using Command = std::vector<std::string>;

  static Command nbdkit(std::vector<std::string> filters = {},
                        std::vector<std::string> options = {});
  static Command qemu_nbd(std::vector<std::string> options = {});

  // Not started yet.
  TestServer(Command command, uint64_t size);
  ~TestServer();
  TestServer(const TestServer&) = delete;
  TestServer& operator=(const TestServer&) = delete;

  void start();
  void start(Command command) {
    command_ = std::move(command);
    start();
  }
  void kill();
  void resize(uint64_t size);

  std::string uri() const { return "nbd+unix:///?socket=" + path("socket"); }
  std::string path(const std::string& name) const { return directory_ + "/" + name; }

 private:
  Command command_;
  std::string directory_;
  pid_t process_ = 0;  // 0: not running
};

// nbdkit on a TCP port of the loopback interface that stays bound, so that a client can connect
// also while no server runs, and then waits.
class TcpServer {
 public:
  explicit TcpServer(uint64_t size);
  ~TcpServer();
  TcpServer(const TcpServer&) = delete;
  TcpServer& operator=(const TcpServer&) = delete;

  void start();
  void kill();
  std::string uri() const { return "nbd://localhost:" + std::to_string(port_) + "/"; }

 private:
  Fd socket_;
  uint16_t port_ = 0;
  std::string file_;
  pid_t process_ = 0;  // 0: not running
};

}  // namespace vbdkit::drivers::nbd
