// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For the reactor's tests: operations whose completion may be a closure, and a fixture that runs on
// every engine.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <utility>

#include "io/reactor.h"

namespace vbdkit::io {

// An operation with a completion that may be a closure.
struct TestFileOp : FileOp {
  std::function<void(int64_t)> then;
  iovec vec{};

  TestFileOp(int file, Kind op_kind, std::function<void(int64_t)> callback)
      : then(std::move(callback)) {
    fd = file;
    kind = op_kind;
    done = [](FileOp& op, int64_t result) { static_cast<TestFileOp&>(op).then(result); };
  }
  void with(void* data, size_t n, uint64_t at) {
    vec = {data, n};
    iov = &vec;
    iov_count = 1;
    offset = at;
  }
};

struct TestSocketOp : SocketOp {
  std::function<void(int64_t)> then;
  iovec vec{};
  msghdr header{};

  TestSocketOp(int socket, Kind op_kind, std::function<void(int64_t)> callback)
      : then(std::move(callback)) {
    fd = socket;
    kind = op_kind;
    done = [](SocketOp& op, int64_t result) { static_cast<TestSocketOp&>(op).then(result); };
  }
  void with(void* data, size_t n) {
    vec = {data, n};
    header.msg_iov = &vec;
    header.msg_iovlen = 1;
    if (kind == Kind::kSend) msg = &header;
    buffer = data;
    length = static_cast<uint32_t>(n);
  }
};

struct TestDeferred : Deferred {
  explicit TestDeferred(std::function<void()> callback) : then(std::move(callback)) {
    run = [](Deferred& d) { static_cast<TestDeferred&>(d).then(); };
  }
  std::function<void()> then;
};

class ReactorTest : public testing::TestWithParam<EngineKind> {
 protected:
  ReactorTest() : log_("test", LogLevel::kWarning) {}

  void SetUp() override {
    auto reactor = Reactor::create({.engine = GetParam()}, log_);
    ASSERT_TRUE(reactor.ok()) << reactor.error().message();
    reactor_ = std::move(reactor).value();
    char path[] = "/var/tmp/vbdkit-reactor-XXXXXX";
    file_ = Fd(mkostemp(path, O_CLOEXEC));
    ASSERT_TRUE(file_.valid());
    unlink(path);
    ASSERT_EQ(0, ftruncate(file_.get(), 1 << 20));
  }

  void run() { ASSERT_TRUE(reactor_->run().ok()); }

  static std::pair<Fd, Fd> socket_pair(int type = SOCK_STREAM) {
    int ends[2];
    EXPECT_EQ(0, socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends));
    return {Fd(ends[0]), Fd(ends[1])};
  }
  static std::pair<Fd, Fd> pipe() {
    int ends[2];
    EXPECT_EQ(0, pipe2(ends, O_CLOEXEC));
    return {Fd(ends[0]), Fd(ends[1])};
  }

  Logger log_;
  std::unique_ptr<Reactor> reactor_;
  Fd file_;
};

}  // namespace vbdkit::io
