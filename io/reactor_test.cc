// SPDX-License-Identifier: LGPL-2.1-or-later
//
// One suite for every engine: what io/reactor.h promises holds on each.
#include "io/reactor.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <deque>
#include <thread>

namespace vbdkit::io {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;

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

TEST_P(ReactorTest, WhatWasWrittenIsRead) {
  std::string out = "what was written";
  std::string in(out.size(), ' ');
  TestFileOp read(file_.get(), FileOp::Kind::kRead, [&](int64_t result) {
    EXPECT_EQ(static_cast<int64_t>(out.size()), result);
    reactor_->stop();
  });
  TestFileOp sync(file_.get(), FileOp::Kind::kDataSync, [&](int64_t result) {
    EXPECT_EQ(0, result);
    read.with(in.data(), in.size(), 5000);
    reactor_->submit(read);
  });
  TestFileOp write(file_.get(), FileOp::Kind::kWrite, [&](int64_t result) {
    EXPECT_EQ(static_cast<int64_t>(out.size()), result);
    reactor_->submit(sync);
  });
  write.with(out.data(), out.size(), 5000);
  write.rw_flags = RWF_DSYNC;
  reactor_->submit(write);
  run();
  EXPECT_EQ(out, in);
}

TEST_P(ReactorTest, ABulkTransferMovesTheSameBytes) {
  std::string out(512 << 10, ' ');
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<char>('a' + i / 4096 % 26);
  std::string in(out.size(), ' ');
  TestFileOp read(file_.get(), FileOp::Kind::kRead, [&](int64_t result) {
    EXPECT_EQ(static_cast<int64_t>(out.size()), result);
    reactor_->stop();
  });
  read.bulk = true;
  read.copies_only = true;
  TestFileOp write(file_.get(), FileOp::Kind::kWrite, [&](int64_t result) {
    EXPECT_EQ(static_cast<int64_t>(out.size()), result);
    read.with(in.data(), in.size(), 4096);
    reactor_->submit(read);
  });
  write.with(out.data(), out.size(), 4096);
  write.bulk = true;
  reactor_->submit(write);
  run();
  EXPECT_EQ(out, in);
}

TEST_P(ReactorTest, VectorsAndShortCountsAreReportedAsTheyAre) {
  std::array<char, 3> a{};
  std::array<char, 8192> b{};
  const iovec pieces[2] = {{a.data(), a.size()}, {b.data(), b.size()}};
  TestFileOp read(file_.get(), FileOp::Kind::kRead, [&](int64_t result) {
    EXPECT_EQ(4096, result);
    reactor_->stop();
  });
  read.iov = pieces;
  read.iov_count = 2;
  read.offset = (1 << 20) - 4096;
  reactor_->submit(read);
  run();
}

TEST_P(ReactorTest, FallocatePunchesAHole) {
  std::string data(65536, 'x');
  ASSERT_EQ(65536, pwrite(file_.get(), data.data(), data.size(), 0));
  int64_t result = -1;
  TestFileOp punch(file_.get(), FileOp::Kind::kFallocate, [&](int64_t r) {
    result = r;
    reactor_->stop();
  });
  punch.fallocate_mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  punch.offset = 4096;
  punch.length = 8192;
  reactor_->submit(punch);
  run();
  ASSERT_EQ(0, result);
  ASSERT_EQ(65536, pread(file_.get(), data.data(), data.size(), 0));
  EXPECT_EQ(std::string(8192, '\0'), data.substr(4096, 8192));
  EXPECT_EQ('x', data[4095]);
  EXPECT_EQ('x', data[4096 + 8192]);
}

TEST_P(ReactorTest, AFailureIsANegativeErrno) {
  int left = 3;
  const auto expect = [&](int64_t wanted) {
    return [&, wanted](int64_t result) {
      EXPECT_EQ(wanted, result);
      if (--left == 0) reactor_->stop();
    };
  };
  std::array<char, 512> memory{};
  TestFileOp closed(1'000'000, FileOp::Kind::kRead, expect(-EBADF));
  closed.with(memory.data(), memory.size(), 0);
  Fd read_only(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  TestFileOp refused(read_only.get(), FileOp::Kind::kWrite, expect(-EBADF));
  refused.with(memory.data(), memory.size(), 0);
  TestFileOp fault(file_.get(), FileOp::Kind::kRead, expect(-EFAULT));
  fault.with(reinterpret_cast<void*>(8), 512, 0);
  for (FileOp* op : {static_cast<FileOp*>(&closed), static_cast<FileOp*>(&refused),
                     static_cast<FileOp*>(&fault)})
    reactor_->submit(*op);
  run();
}

TEST_P(ReactorTest, NoCompletionRunsInsideSubmit) {
  bool inside = false;
  int left = 100;
  std::array<char, 512> memory{};
  std::function<void()> next;
  TestFileOp read(file_.get(), FileOp::Kind::kRead, [&](int64_t) {
    EXPECT_FALSE(inside);
    if (--left > 0)
      next();
    else
      reactor_->stop();
  });
  read.with(memory.data(), memory.size(), 0);
  next = [&] {
    inside = true;
    reactor_->submit(read);
    inside = false;
  };
  next();
  run();
  EXPECT_EQ(0, left);
}

TEST_P(ReactorTest, MoreOperationsThanTheQueueHoldsAllComplete) {
  auto small = Reactor::create({.engine = GetParam(), .queue_depth = 8}, log_);
  ASSERT_TRUE(small.ok());
  reactor_ = std::move(small).value();
  constexpr size_t kCount = 1000;
  size_t left = kCount;
  std::vector<std::array<char, 512>> memory(kCount);
  std::deque<TestFileOp> ops;
  for (size_t i = 0; i < kCount; ++i) {
    const auto kind = i % 7 == 0 ? FileOp::Kind::kDataSync : FileOp::Kind::kRead;
    ops.emplace_back(file_.get(), kind, [&, kind](int64_t result) {
      EXPECT_EQ(kind == FileOp::Kind::kRead ? 512 : 0, result);
      if (--left == 0) reactor_->stop();
    });
    if (kind == FileOp::Kind::kRead) ops.back().with(memory[i].data(), 512, i * 512);
    reactor_->submit(ops.back());
  }
  run();
  EXPECT_EQ(0u, left);
  EXPECT_EQ(kCount, reactor_->counters().file_ops);
}

// Direct I/O, so that nothing completes inside the submission.
TEST_P(ReactorTest, ReadsOfOneTurnShareTheirKernelEntry) {
  if (GetParam() == EngineKind::kSync) GTEST_SKIP() << "one system call per operation";
  constexpr size_t kCount = 32;
  if (fcntl(file_.get(), F_SETFL, O_DIRECT) != 0) GTEST_SKIP() << "no direct I/O here";
  std::unique_ptr<char, void (*)(void*)> memory(
      static_cast<char*>(aligned_alloc(4096, kCount * 4096)), free);
  std::deque<TestFileOp> ops;
  uint64_t before = 0;
  uint64_t handed_over = 0;
  size_t left = kCount;
  for (size_t i = 0; i < kCount; ++i) {
    ops.emplace_back(file_.get(), FileOp::Kind::kRead, [&](int64_t result) {
      EXPECT_EQ(4096, result);
      // At the first completion all had been handed over.
      if (handed_over == 0) handed_over = reactor_->counters().kernel_entries - before;
      if (--left == 0) reactor_->stop();
    });
    ops.back().with(memory.get() + i * 4096, 4096, i * 4096);
  }
  // From inside the loop, when its own start is over.
  TestFileOp first(file_.get(), FileOp::Kind::kDataSync, [&](int64_t) {
    before = reactor_->counters().kernel_entries;
    for (TestFileOp& op : ops) reactor_->submit(op);
  });
  reactor_->submit(first);
  run();
  EXPECT_LE(handed_over, 2u);
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
