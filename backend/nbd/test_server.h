// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests: a server on its own thread with its own reactor, in front of a real graph or of a sink
// that the test controls; and a client that speaks raw bytes. The test's thread reaches the
// server's only through on_loop().
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "backend/nbd/protocol.h"
#include "backend/nbd/server.h"
#include "drivers/registry.h"

namespace vbdkit::nbd {

// A directory of its own that goes with it.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Holds every request until the test lets it go.
class HoldingSink final : public RequestSink, public StatusSource {
 public:
  explicit HoldingSink(uint64_t size) {
    info_.size = Bytes{size};
    info_.request_alignment = 512;
    info_.can_discard = true;
  }
  void submit(drivers::Request& request) override {
    held_.push_back(&request);
    ++submitted;
  }
  const drivers::NodeInfo& info() const override { return info_; }
  void block_status(drivers::StatusRequest& request) override { request.done(EIO); }

  // On the loop's thread.
  size_t held() const { return held_.size(); }
  void release(int error);

  drivers::NodeInfo info_;
  std::atomic<unsigned> submitted{0};

 private:
  std::vector<drivers::Request*> held_;
};

class TestServer {
 public:
  // In front of `spec`.
  TestServer(const std::string& spec, ServerOptions options);
  // In front of `sink`, which the caller owns.
  TestServer(HoldingSink& sink, ServerOptions options);
  ~TestServer() { stop(); }

  const std::string& path() const { return path_; }
  std::string uri() const { return "nbd+unix:///?socket=" + path_; }

  // Runs f on the loop's thread and returns what it returns.
  template <typename F>
  auto on_loop(F f) {
    std::packaged_task<decltype(f())()> task(std::move(f));
    auto result = task.get_future();
    reactor_->post([&task] { task(); });
    return result.get();
  }
  ServerStats stats() {
    return on_loop([this] { return server_->stats(); });
  }
  // Begins the shutdown; the future is ready when the server is done.
  std::future<void> shutdown(std::chrono::milliseconds drain = std::chrono::seconds(5));
  void stop();

 private:
  void start(RequestSink& sink, StatusSource& status, ServerOptions options);

  TempDir dir_;
  Logger log_{"test", LogLevel::kError};
  std::string path_;
  std::unique_ptr<io::Reactor> reactor_;
  drivers::NodePtr node_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<SchedulerStatus> status_;
  std::unique_ptr<Server> server_;
  std::thread thread_;
  HoldingSink* holding_ = nullptr;
};

// Waits for what another thread brings about; the deadline only ends a test that failed.
template <typename F>
bool eventually(F condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

// A client that sends what it is told, right or wrong.
class RawClient {
 public:
  explicit RawClient(const std::string& path);

  void send(std::string_view bytes);
  // What can be sent without waiting; returns how much it was.
  size_t send_some(std::string_view bytes);
  // Exactly n bytes; less where the server closed.
  std::string recv(size_t n);
  // True where the server has ended the connection (after whatever it sent before).
  bool closed();

  // Through the handshake with simple replies.
  void enter() { EXPECT_TRUE(try_enter()); }
  bool try_enter();
  void request(Command command, uint64_t offset, uint32_t length, uint64_t cookie = 1,
               uint16_t flags = 0) {
    send(encoded(command, offset, length, cookie, flags));
  }
  // Many of them go into one send(): one by one they fill a socket's buffer with overhead, and a
  // server that rightly reads no further would never let the last of them in.
  static std::string encoded(Command command, uint64_t offset, uint32_t length, uint64_t cookie = 1,
                             uint16_t flags = 0);
  // The error of the next simple reply, -1 where there is none.
  int reply(uint64_t* cookie = nullptr);

  int fd() const { return fd_.get(); }
  void disconnect() { fd_.reset(); }

 private:
  Fd fd_;
};

// Big-endian bytes of an integer.
template <typename T>
std::string be(T v) {
  std::string s(sizeof v, '\0');
  store_be(reinterpret_cast<uint8_t*>(s.data()), v);
  return s;
}
std::string option_bytes(Option option, uint32_t length, std::string_view data);

}  // namespace vbdkit::nbd
