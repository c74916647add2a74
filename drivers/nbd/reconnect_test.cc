// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Servers that go away and come back, in the midst of verified writing.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <random>

#include "drivers/allocation_count.h"
#include "drivers/nbd/nbd_node.h"
#include "drivers/nbd/test_server.h"

namespace vbdkit::drivers::nbd {
namespace {

using std::chrono::milliseconds;

constexpr uint64_t kSize = 4 << 20;  // bytes
constexpr size_t kBlock = 4096;      // bytes
constexpr size_t kDepth = 16;        // requests in flight

struct Io : Request {
  class ReconnectTest* test = nullptr;
  iovec memory{};
  std::vector<uint8_t> data;
  int error = -1;
};

class ReconnectTest : public testing::Test {
 protected:
  ReconnectTest() {
    int ends[2];
    EXPECT_EQ(0, pipe2(ends, O_CLOEXEC | O_NONBLOCK));
    log_read_ = Fd(ends[0]);
    log_write_ = Fd(ends[1]);
    log_ = std::make_unique<Logger>("test", LogLevel::kInfo, log_write_.get());
    watch_ = reactor_->watch(log_read_.get(), [this] { read_log(); });
  }
  ~ReconnectTest() override { node_.reset(); }

  NbdOptions quick() const {
    NbdOptions options;
    options.first_retry = milliseconds(1);
    options.last_retry = milliseconds(20);
    return options;
  }

  Result<void> open(const std::string& uri, NbdOptions options, bool read_only = false) {
    const size_t colon = uri.find(':');
    NodeSpec spec{uri.substr(0, colon), uri.substr(colon + 1), {}};
    const bool tcp = spec.driver == "nbd";
    node_ = std::make_unique<NbdNode>(
        LibNbd::load().value(), spec,
        Target{.uri = uri, .transport = tcp ? Transport::kTcp : Transport::kUnix}, options,
        OpenContext{*reactor_, *log_, {.read_only = read_only}});
    return node_->open();
  }

  // Calls `action` once, when the node has logged a line that contains `text`.
  void when_logged(const std::string& text, std::function<void()> action) {
    expected_ = text;
    action_ = std::move(action);
  }

  void read_log() {
    char buffer[4096];
    const ssize_t n = read(log_read_.get(), buffer, sizeof buffer);
    if (n > 0) text_.append(buffer, static_cast<size_t>(n));
    if (action_ && text_.find(expected_) != std::string::npos) std::exchange(action_, nullptr)();
  }

  void submit(Io& io, Op op, uint64_t offset = 0, uint64_t length = 0, uint8_t flags = 0) {
    io.test = this;
    io.op = op;
    io.flags = flags;
    io.offset = offset;
    io.length = length;
    io.error = -1;
    if (io.data.size() < length) io.data.resize(length);
    io.memory = {io.data.data(), length};
    io.iov = &io.memory;
    io.iov_count = length == 0 ? 0 : 1;
    io.done = [](Request& r, int error) {
      auto& done = static_cast<Io&>(r);
      done.error = error;
      done.test->completed(done);
    };
    ++pending_;
    node_->submit(io);
  }

  void completed(Io& io) {
    --pending_;
    if (on_done_)
      on_done_(io);
    else if (pending_ == 0)
      reactor_->stop();
  }

  int run(Io& io, Op op, uint64_t offset = 0, uint64_t length = 0, uint8_t flags = 0) {
    submit(io, op, offset, length, flags);
    while (io.error < 0) EXPECT_TRUE(reactor_->run().ok());
    return io.error;
  }

  // Writes, reads and flushes at random with kDepth requests in flight that do not overlap, and
  // checks what is read. `at` is called with the number of requests done so far.
  void churn(uint64_t requests, const std::function<void(uint64_t)>& at) {
    std::vector<Io> ios(kDepth);
    model_.resize(kSize);
    uint64_t begun = 0;
    uint64_t done = 0;
    const auto next = [&](Io& io) {
      if (begun == requests) return;
      ++begun;
      // Each has a part of the disk for itself.
      const uint64_t part = kSize / kDepth;
      const uint64_t base = part * static_cast<uint64_t>(&io - ios.data());
      const uint64_t offset = base + rng_() % (part / kBlock) * kBlock;
      const uint64_t length = std::min(base + part - offset, (1 + rng_() % 4) * kBlock);
      io.data.resize(length);
      const uint64_t kind = rng_() % 16;
      if (kind == 0) {
        submit(io, Op::kFlush);
      } else if (kind == 1) {
        submit(io, Op::kWriteZeroes, offset, length);
      } else if (kind < 10) {
        for (auto& byte : io.data) byte = static_cast<uint8_t>(rng_());
        submit(io, Op::kWrite, offset, length, kind == 2 ? kFua : uint8_t{0});
      } else {
        submit(io, Op::kRead, offset, length);
      }
    };
    on_done_ = [&](Io& io) {
      EXPECT_EQ(0, io.error);
      const auto model = model_.begin() + static_cast<ptrdiff_t>(io.offset);
      const auto end = io.data.begin() + static_cast<ptrdiff_t>(io.length);
      if (io.op == Op::kWrite) std::copy(io.data.begin(), end, model);
      if (io.op == Op::kWriteZeroes) std::fill_n(model, io.length, uint8_t{0});
      if (io.op == Op::kRead) {
        EXPECT_TRUE(std::equal(io.data.begin(), end, model)) << "at " << io.offset;
      }
      at(++done);
      next(io);
      if (pending_ == 0) reactor_->stop();
    };
    for (Io& io : ios) next(io);
    EXPECT_TRUE(reactor_->run().ok());
    on_done_ = nullptr;
    EXPECT_EQ(requests, done);
  }

  void expect_model() {
    Io io;
    for (uint64_t at = 0; at < kSize; at += 1 << 20) {
      ASSERT_EQ(0, run(io, Op::kRead, at, 1 << 20));
      ASSERT_TRUE(
          std::equal(io.data.begin(), io.data.end(), model_.begin() + static_cast<ptrdiff_t>(at)))
          << "in the MiB at " << at;
    }
  }

  // Kills the server three times while requests are in flight; it is back when the node has tried
  // in vain.
  template <typename Server>
  void survive_kills(Server& server) {
    churn(6000, [&](uint64_t done) {
      if (done % 1500 != 0 || done == 6000) return;
      server.kill();
      text_.clear();
      when_logged("the disk waits", [&] { server.start(); });
    });
    expect_model();
    EXPECT_EQ(3u, node_->counters().losses);
    EXPECT_GE(node_->counters().attempts, 3u);
  }

  Logger quiet_{"test", LogLevel::kWarning};
  std::unique_ptr<io::Reactor> reactor_ = io::Reactor::create({}, quiet_).value();
  Fd log_read_, log_write_;
  std::unique_ptr<Logger> log_;
  std::string text_;
  std::string expected_;
  std::function<void()> action_;
  std::unique_ptr<io::FdWatch> watch_;
  std::unique_ptr<NbdNode> node_;
  std::vector<uint8_t> model_;
  std::mt19937_64 rng_{20261122};
  size_t pending_ = 0;
  std::function<void(Io&)> on_done_;
};

TEST_F(ReconnectTest, NbdkitMayBeKilledInTheMidstOfWriting) {
  TestServer server(TestServer::nbdkit(), kSize);
  server.start();
  ASSERT_TRUE(open(server.uri(), quick()).ok());
  survive_kills(server);
}

TEST_F(ReconnectTest, QemuNbdMayBeKilledInTheMidstOfWriting) {
  TestServer server(TestServer::qemu_nbd(), kSize);
  server.start();
  ASSERT_TRUE(open(server.uri(), quick()).ok());
  survive_kills(server);
}

TEST_F(ReconnectTest, OverTcpToo) {
  TcpServer server(kSize);
  server.start();
  ASSERT_TRUE(open(server.uri(), quick()).ok());
  survive_kills(server);
}

// This one keeps writes to itself until a flush: what is not flushed dies with it.
TEST_F(ReconnectTest, WhatAServerLostThatHadNotBeenFlushedIsWrittenAgain) {
  TestServer server(TestServer::nbdkit({"cache"}, {"cache=writeback"}), kSize);
  server.start();
  ASSERT_TRUE(open(server.uri(), quick()).ok());
  survive_kills(server);
  EXPECT_GT(node_->counters().replayed, 0u);
  // The server is told to keep it, and dies: it was told in truth.
  Io io;
  EXPECT_EQ(0, run(io, Op::kFlush));
  EXPECT_EQ(0u, node_->unflushed_bytes());
  server.kill();
  server.start();
  const uint64_t replayed = node_->counters().replayed;
  expect_model();
  EXPECT_EQ(replayed, node_->counters().replayed);
}

TEST_F(ReconnectTest, TheMemoryForUnflushedWritesIsBoundedByFlushesOfTheNodesOwn) {
  TestServer server(TestServer::nbdkit({"cache"}, {"cache=writeback"}), kSize);
  server.start();
  NbdOptions options = quick();
  options.replay_memory = 256 << 10;
  ASSERT_TRUE(open(server.uri(), options).ok());
  uint64_t most = 0;
  churn(6000, [&](uint64_t done) {
    most = std::max(most, node_->unflushed_bytes());
    if (done != 3000) return;
    server.kill();
    server.start();
  });
  expect_model();
  EXPECT_LE(most, options.replay_memory);
  EXPECT_GT(node_->counters().own_flushes, 0u);
}

TEST_F(ReconnectTest, WithoutThatMemoryALossIsToldByTheNextFlushAndByNoOther) {
  TestServer server(TestServer::nbdkit({"cache"}, {"cache=writeback"}), kSize);
  server.start();
  NbdOptions options = quick();
  options.replay_memory = 0;
  ASSERT_TRUE(open(server.uri(), options).ok());
  Io io;
  ASSERT_EQ(0, run(io, Op::kWrite, 0, kBlock));
  ASSERT_EQ(0, run(io, Op::kFlush));
  server.kill();
  server.start();
  EXPECT_EQ(0, run(io, Op::kFlush)) << "nothing was lost";
  ASSERT_EQ(0, run(io, Op::kWrite, 0, kBlock));
  server.kill();
  server.start();
  EXPECT_EQ(EIO, run(io, Op::kFlush));
  EXPECT_EQ(0, run(io, Op::kFlush));
}

TEST_F(ReconnectTest, RequestsFailWhenTheTimeIsOverAndSucceedAgainWithTheServer) {
  TestServer server(TestServer::nbdkit(), kSize);
  server.start();
  NbdOptions options = quick();
  options.reconnect_timeout = milliseconds(50);
  ASSERT_TRUE(open(server.uri(), options).ok());
  server.kill();
  Io waiting, later;
  EXPECT_EQ(EIO, run(waiting, Op::kWrite, 0, kBlock));
  EXPECT_EQ(EIO, run(later, Op::kRead, 0, kBlock));
  bool back = false;
  when_logged("connected again", [&] {
    back = true;
    reactor_->stop();
  });
  server.start();
  while (!back) ASSERT_TRUE(reactor_->run().ok());
  EXPECT_EQ(0, run(later, Op::kRead, 0, kBlock));
}

TEST_F(ReconnectTest, AServerWithAnotherSizeIsNotUsed) {
  TestServer server(TestServer::nbdkit(), kSize);
  server.start();
  ASSERT_TRUE(open(server.uri(), quick()).ok());
  server.kill();
  server.resize(kSize * 2);
  server.start();
  bool refused = false;
  when_logged("not used: it has 8388608 bytes now, expected 4194304", [&] {
    refused = true;
    server.kill();
    server.resize(kSize);
    server.start();
  });
  Io io;
  EXPECT_EQ(0, run(io, Op::kWrite, 0, kBlock));
  EXPECT_TRUE(refused) << text_;
}

TEST_F(ReconnectTest, AServerThatIsReadOnlyNowIsNotUsed) {
  TestServer server(TestServer::qemu_nbd(), kSize);
  server.start();
  ASSERT_TRUE(open(server.uri(), quick()).ok());
  server.kill();
  server.start(TestServer::qemu_nbd({"--read-only"}));
  bool refused = false;
  when_logged("not used: it is read-only now", [&] {
    refused = true;
    server.kill();
    server.start(TestServer::qemu_nbd());
  });
  Io io;
  EXPECT_EQ(0, run(io, Op::kWrite, 0, kBlock));
  EXPECT_TRUE(refused) << text_;
}

TEST_F(ReconnectTest, AGrownExportIsTakenOverByAskingForItsSize) {
  TestServer server(TestServer::nbdkit(), kSize);
  server.start();
  ASSERT_TRUE(open(server.uri(), quick()).ok());
  Io first, second;
  submit(first, Op::kWrite, 0, kBlock);  // in flight meanwhile
  server.resize(kSize * 2);
  ASSERT_TRUE(node_->refresh_size().ok());
  EXPECT_EQ(kSize * 2, node_->info().size.v);
  EXPECT_EQ(0, run(second, Op::kWrite, kSize * 2 - kBlock, kBlock));
  EXPECT_EQ(0, first.error);
  EXPECT_EQ(0u, node_->counters().losses);
}

TEST_F(ReconnectTest, AReadOnlyExportIsNotOpenedForWriting) {
  TestServer server(TestServer::qemu_nbd({"--read-only"}), kSize);
  server.start();
  const auto opened = open(server.uri(), quick());
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ("nbd: " + server.uri() + ": the server exports it read-only", opened.error().message());
  EXPECT_TRUE(open(server.uri(), quick(), true).ok());
}

TEST_F(ReconnectTest, OpeningEndsInTimeWhereNobodyAnswers) {
  char name[] = "/var/tmp/vbdkit-nbd-XXXXXX";
  ASSERT_NE(nullptr, mkdtemp(name));
  const std::string path = std::string(name) + "/socket";
  const Fd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(0, bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address));
  ASSERT_EQ(0, listen(listener.get(), 1));
  NbdOptions options = quick();
  options.handshake_timeout = milliseconds(20);
  const auto opened = open("nbd+unix:///?socket=" + path, options);
  unlink(path.c_str());
  rmdir(name);
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(ErrorKind::kTimedOut, opened.error().kind()) << opened.error().message();
}

TEST_F(ReconnectTest, AMissingServerIsAnErrorThatSaysWhere) {
  const auto opened = open("nbd+unix:///?socket=/nonexistent/socket", quick());
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(
      "nbd: nbd+unix:///?socket=/nonexistent/socket: connect: No such file "
      "or directory",
      opened.error().message());
}

TEST_F(ReconnectTest, NothingIsAllocatedForARequestOnceThePoolsHaveGrown) {
  TestServer server(TestServer::nbdkit(), kSize);
  server.start();
  ASSERT_TRUE(open(server.uri(), quick()).ok());
  Io io;
  uint64_t before = 0;
  int count = 0;
  on_done_ = [&](Io& done) {
    ASSERT_EQ(0, done.error);
    if (++count == 300) before = allocation_count();
    if (count == 600) {
      EXPECT_EQ(before, allocation_count());
      reactor_->stop();
    } else if (count % 3 == 0) {
      submit(io, Op::kWrite, 0, kBlock);
    } else if (count % 3 == 1) {
      submit(io, Op::kRead, 0, kBlock);
    } else {
      submit(io, Op::kFlush);
    }
  };
  submit(io, Op::kWrite, 0, kBlock);
  ASSERT_TRUE(reactor_->run().ok());
}

}  // namespace
}  // namespace vbdkit::drivers::nbd
