// SPDX-License-Identifier: LGPL-2.1-or-later
//
// One suite for every engine: what io/reactor.h promises holds on each.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <deque>
#include <thread>

#include "io/test_reactor.h"

namespace vbdkit::io {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;

std::string engine_label(const testing::TestParamInfo<EngineKind>& info) {
  switch (info.param) {
    case EngineKind::kUring:
      return "Uring";
    case EngineKind::kAio:
      return "Aio";
    default:
      return "Sync";
  }
}

INSTANTIATE_TEST_SUITE_P(Engines, ReactorTest,
                         testing::Values(EngineKind::kUring, EngineKind::kAio, EngineKind::kSync),
                         engine_label);

TEST_P(ReactorTest, TellsWhichEngineItIs) {
  const std::array<const char*, 4> names = {"", "io_uring", "libaio", "sync"};
  EXPECT_STREQ(names[static_cast<size_t>(GetParam())], reactor_->engine_name());
  EXPECT_EQ(GetParam(), parse_engine(reactor_->engine_name()).value());
}

TEST_P(ReactorTest, BytesSentAreReceivedAndAWaitingReceiveGetsThem) {
  auto [a, b] = socket_pair();
  std::string out = "to the other end";
  std::string in(100, ' ');
  int64_t received = -1;
  TestSocketOp recv(b.get(), SocketOp::Kind::kRecv, [&](int64_t result) {
    received = result;
    reactor_->stop();
  });
  recv.with(in.data(), in.size());
  TestSocketOp send(a.get(), SocketOp::Kind::kSend,
                    [&](int64_t result) { EXPECT_EQ(static_cast<int64_t>(out.size()), result); });
  send.with(out.data(), out.size());
  reactor_->submit(recv);
  auto timer = reactor_->timer([&] { reactor_->submit(send); });
  timer->arm(Timer::Clock::now() + milliseconds(5));
  run();
  ASSERT_EQ(static_cast<int64_t>(out.size()), received);
  EXPECT_EQ(out, in.substr(0, out.size()));
}

TEST_P(ReactorTest, AReceiveMayFillSeveralBuffers) {
  auto [a, b] = socket_pair();
  ASSERT_EQ(6, ::send(a.get(), "abcdef", 6, 0));
  std::array<char, 2> first{};
  std::array<char, 10> second{};
  iovec pieces[2] = {{first.data(), first.size()}, {second.data(), second.size()}};
  msghdr header{};
  header.msg_iov = pieces;
  header.msg_iovlen = 2;
  TestSocketOp recv(b.get(), SocketOp::Kind::kRecv, [&](int64_t result) {
    EXPECT_EQ(6, result);
    reactor_->stop();
  });
  recv.msg = &header;
  reactor_->submit(recv);
  run();
  EXPECT_EQ("ab", std::string(first.data(), 2));
  EXPECT_EQ("cdef", std::string(second.data(), 4));
}

TEST_P(ReactorTest, ASendThatMustWaitGoesOnWhenThePeerReads) {
  auto [a, b] = socket_pair();
  const int small = 4096;
  ASSERT_EQ(0, setsockopt(a.get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small));
  std::string out(1 << 20, 'x');
  std::vector<char> in(1 << 16);
  size_t sent = 0;
  size_t received = 0;
  TestSocketOp send(a.get(), SocketOp::Kind::kSend, {});
  TestSocketOp recv(b.get(), SocketOp::Kind::kRecv, {});
  send.then = [&](int64_t result) {
    ASSERT_GT(result, 0);
    sent += static_cast<size_t>(result);
    if (sent == out.size()) return;
    send.with(out.data() + sent, out.size() - sent);
    reactor_->submit(send);
  };
  recv.then = [&](int64_t result) {
    ASSERT_GT(result, 0);
    received += static_cast<size_t>(result);
    if (received == out.size())
      reactor_->stop();
    else
      reactor_->submit(recv);
  };
  send.with(out.data(), out.size());
  recv.with(in.data(), in.size());
  reactor_->submit(send);
  reactor_->submit(recv);
  run();
  EXPECT_EQ(out.size(), sent);
}

TEST_P(ReactorTest, ShutdownEndsAPendingReceiveAndSendingToNobodyFailsWithoutASignal) {
  auto [a, b] = socket_pair();
  std::array<char, 16> memory{};
  int left = 2;
  const auto finish = [&] {
    if (--left == 0) reactor_->stop();
  };
  TestSocketOp recv(a.get(), SocketOp::Kind::kRecv, [&](int64_t result) {
    EXPECT_EQ(0, result);
    finish();
  });
  recv.with(memory.data(), memory.size());
  TestSocketOp send(a.get(), SocketOp::Kind::kSend, [&](int64_t result) {
    EXPECT_EQ(-EPIPE, result);
    finish();
  });
  send.with(memory.data(), memory.size());
  reactor_->submit(recv);
  auto timer = reactor_->timer([&] {
    shutdown(a.get(), SHUT_RDWR);
    reactor_->submit(send);
  });
  timer->arm(Timer::Clock::now() + milliseconds(5));
  run();
}

TEST_P(ReactorTest, AcceptsOneConnectionAfterAnother) {
  Fd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;  // no name: the kernel chooses an abstract one
  socklen_t length = sizeof(sa_family_t);
  ASSERT_EQ(0, bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length));
  ASSERT_EQ(0, listen(listener.get(), 8));
  length = sizeof address;
  ASSERT_EQ(0, getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length));
  std::vector<Fd> clients;
  const auto connect_one = [&] {
    Fd client(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(0, connect(client.get(), reinterpret_cast<sockaddr*>(&address), length));
    clients.push_back(std::move(client));
  };
  int accepted = 0;
  TestSocketOp accept(listener.get(), SocketOp::Kind::kAccept, {});
  accept.then = [&](int64_t result) {
    ASSERT_GE(result, 0);
    Fd connection(static_cast<int>(result));
    EXPECT_NE(0, fcntl(connection.get(), F_GETFD) & FD_CLOEXEC);
    if (++accepted == 3) {
      reactor_->stop();
      return;
    }
    reactor_->submit(accept);
    if (accepted == 1) connect_one();
  };
  connect_one();
  connect_one();
  reactor_->submit(accept);
  run();
  EXPECT_EQ(3, accepted);
}

TEST_P(ReactorTest, ShutdownEndsAPendingAccept) {
  Fd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  ASSERT_EQ(0, bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(sa_family_t)));
  ASSERT_EQ(0, listen(listener.get(), 8));
  TestSocketOp accept(listener.get(), SocketOp::Kind::kAccept, [&](int64_t result) {
    EXPECT_EQ(-EINVAL, result);
    reactor_->stop();
  });
  reactor_->submit(accept);
  auto timer = reactor_->timer([&] { shutdown(listener.get(), SHUT_RDWR); });
  timer->arm(Timer::Clock::now() + milliseconds(5));
  run();
}

// A closed descriptor's number comes back at once; what was known of it must not stick.
TEST_P(ReactorTest, ADescriptorNumberMayBeUsedAgain) {
  std::array<char, 16> memory{};
  int number = -1;
  for (int i = 0; i < 5; ++i) {
    auto [a, b] = socket_pair();
    if (number < 0) number = b.get();
    EXPECT_EQ(number, b.get());
    int64_t received = -1;
    TestSocketOp recv(b.get(), SocketOp::Kind::kRecv, [&](int64_t result) {
      received = result;
      reactor_->stop();
    });
    recv.with(memory.data(), memory.size());
    reactor_->submit(recv);
    const int from = a.get();
    auto timer = reactor_->timer([from] { EXPECT_EQ(2, ::send(from, "hi", 2, 0)); });
    timer->arm(Timer::Clock::now() + milliseconds(2));
    run();
    EXPECT_EQ(2, received);
  }
}

TEST_P(ReactorTest, AWatchIsCalledAsLongAsThereIsSomethingToRead) {
  auto [r, w] = pipe();
  ASSERT_EQ(3, write(w.get(), "abc", 3));
  std::string seen;
  const int fd = r.get();
  auto watch = reactor_->watch(fd, [&] {
    char c;
    ASSERT_EQ(1, read(fd, &c, 1));
    seen += c;
    if (seen == "abc") {
      ASSERT_EQ(1, write(w.get(), "d", 1));
    }
    if (seen == "abcd") reactor_->stop();
  });
  run();
  EXPECT_EQ("abcd", seen);
}

TEST_P(ReactorTest, AWatchMayEndItselfAndAnotherInItsCallback) {
  auto [r1, w1] = pipe();
  auto [r2, w2] = pipe();
  ASSERT_EQ(1, write(w1.get(), "x", 1));
  ASSERT_EQ(1, write(w2.get(), "x", 1));
  std::unique_ptr<FdWatch> first;
  std::unique_ptr<FdWatch> second;
  int calls = 0;
  const auto end_both = [&] {
    ++calls;
    first.reset();
    second.reset();
    r1.reset();
    r2.reset();
  };
  first = reactor_->watch(r1.get(), end_both);
  second = reactor_->watch(r2.get(), end_both);
  auto timer = reactor_->timer([&] { reactor_->stop(); });
  timer->arm(Timer::Clock::now() + milliseconds(20));
  run();
  EXPECT_EQ(1, calls);
}

TEST_P(ReactorTest, AWatchEndedBeforeTheLoopRanIsNeverCalled) {
  auto [r, w] = pipe();
  ASSERT_EQ(1, write(w.get(), "x", 1));
  reactor_->watch(r.get(), [] { FAIL(); }).reset();
  auto timer = reactor_->timer([&] { reactor_->stop(); });
  timer->arm(Timer::Clock::now() + milliseconds(5));
  run();
}

TEST_P(ReactorTest, TimersFireInTheOrderOfTheirDeadlines) {
  std::string order;
  const auto start = Timer::Clock::now();
  auto c = reactor_->timer([&] {
    order += 'c';
    reactor_->stop();
  });
  auto a = reactor_->timer([&] { order += 'a'; });
  auto b = reactor_->timer([&] { order += 'b'; });
  auto never = reactor_->timer([&] { order += '!'; });
  c->arm(start + milliseconds(12));
  a->arm(start + milliseconds(4));
  b->arm(start + hours(1));
  b->arm(start + milliseconds(8));
  never->arm(start + milliseconds(2));
  never->cancel();
  run();
  EXPECT_EQ("abc", order);
}

TEST_P(ReactorTest, ATimerMayRearmCancelOrDestroyInItsCallback) {
  int fired = 0;
  std::unique_ptr<Timer> again;
  std::unique_ptr<Timer> doomed = reactor_->timer([] { FAIL(); });
  std::unique_ptr<Timer> self;
  again = reactor_->timer([&] {
    doomed.reset();
    if (++fired < 5)
      again->arm(Timer::Clock::now() + milliseconds(1));
    else
      reactor_->stop();
  });
  self = reactor_->timer([&] { self.reset(); });
  const auto soon = Timer::Clock::now() + milliseconds(3);
  again->arm(soon);
  doomed->arm(soon + std::chrono::nanoseconds(1));
  self->arm(soon);
  run();
  EXPECT_EQ(5, fired);
  EXPECT_EQ(nullptr, self);
}

TEST_P(ReactorTest, ATimerThatIsAlwaysLateDoesNotStopTheRest) {
  std::array<char, 512> memory{};
  auto busy = reactor_->timer([] {});
  busy = reactor_->timer([&] { busy->arm(Timer::Clock::now() - milliseconds(1)); });
  busy->arm(Timer::Clock::now());
  int64_t result = -1;
  TestFileOp read(file_.get(), FileOp::Kind::kRead, [&](int64_t r) {
    result = r;
    reactor_->stop();
  });
  read.with(memory.data(), memory.size(), 0);
  reactor_->submit(read);
  run();
  EXPECT_EQ(512, result);
}

TEST_P(ReactorTest, ADeferredRunsOncePerTurnHoweverOftenItIsAsked) {
  int runs = 0;
  std::vector<uint64_t> turns;
  TestDeferred deferred([&] {
    ++runs;
    turns.push_back(reactor_->counters().turns);
  });
  int left = 8;
  std::array<char, 512> memory{};
  std::deque<TestFileOp> ops;
  for (int i = 0; i < 8; ++i) {
    ops.emplace_back(file_.get(), FileOp::Kind::kRead, [&](int64_t) {
      for (int again = 0; again < 5; ++again) reactor_->defer(deferred);
      if (--left == 0) reactor_->stop();
    });
    ops.back().with(memory.data(), memory.size(), 0);
    reactor_->submit(ops.back());
  }
  run();
  EXPECT_GE(runs, 1);
  EXPECT_LE(runs, 8);
  EXPECT_EQ(turns.end(), std::adjacent_find(turns.begin(), turns.end()));
  EXPECT_FALSE(deferred.queued);
}

TEST_P(ReactorTest, ADeferredThatComesBackEveryTurnStarvesNobody) {
  TestDeferred busy({});
  busy.then = [&] { reactor_->defer(busy); };
  reactor_->defer(busy);
  auto timer = reactor_->timer([&] { reactor_->stop(); });
  timer->arm(Timer::Clock::now() + milliseconds(5));
  run();
  EXPECT_GT(reactor_->counters().turns, 1u);
}

TEST_P(ReactorTest, TasksOfOtherThreadsRunHereInTheOrderOfPosting) {
  constexpr int kThreads = 4;
  constexpr int kEach = 500;
  std::array<int, kThreads> next{};
  int left = kThreads * kEach;
  const auto here = std::this_thread::get_id();
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i)
        reactor_->post([&, t, i] {
          EXPECT_EQ(here, std::this_thread::get_id());
          EXPECT_EQ(i, next[static_cast<size_t>(t)]++);
          if (--left == 0) reactor_->stop();
        });
    });
  run();
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(0, left);
}

TEST_P(ReactorTest, AnotherThreadStopsIt) {
  std::thread thread([&] { reactor_->stop(); });
  run();
  thread.join();
}

TEST_P(ReactorTest, AStopBeforeRunIsNotForgottenAndRunMayBeCalledAgain) {
  reactor_->stop();
  run();
  bool ran = false;
  reactor_->post([&] {
    ran = true;
    reactor_->stop();
  });
  run();
  EXPECT_TRUE(ran);
}

// The reactor may run on another thread than the one that made it.
TEST_P(ReactorTest, RunsOnTheThreadThatCallsRun) {
  std::array<char, 512> memory{};
  int64_t result = -1;
  TestFileOp read(file_.get(), FileOp::Kind::kRead, [&](int64_t r) {
    result = r;
    reactor_->stop();
  });
  read.with(memory.data(), memory.size(), 0);
  std::thread thread([&] {
    reactor_->submit(read);
    EXPECT_TRUE(reactor_->run().ok());
  });
  thread.join();
  EXPECT_EQ(512, result);
}

TEST(ReactorCreate, AutoTakesTheBestThatWorksAndNamesItInTheLog) {
  int ends[2];
  ASSERT_EQ(0, pipe2(ends, O_CLOEXEC | O_NONBLOCK));
  Fd read_end(ends[0]);
  Fd write_end(ends[1]);
  unsetenv("JOURNAL_STREAM");
  Logger log("test", LogLevel::kInfo, write_end.get());
  auto reactor = Reactor::create({}, log);
  ASSERT_TRUE(reactor.ok());
  std::array<char, 256> text{};
  ASSERT_GT(::read(read_end.get(), text.data(), text.size()), 0);
  EXPECT_EQ(
      0u,
      std::string(text.data()).find(std::string("test: I/O engine: ") + (*reactor)->engine_name()));
}

TEST(ReactorCreate, AnUnknownEngineNameListsTheKnownOnes) {
  EXPECT_EQ("engine 'posix': unknown (known: auto, io_uring, libaio, sync)",
            parse_engine("posix").error().message());
}

}  // namespace
}  // namespace vbdkit::io
