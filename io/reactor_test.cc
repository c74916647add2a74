// SPDX-License-Identifier: LGPL-2.1-or-later
#include "io/reactor.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <array>
#include <thread>

namespace vbdkit::io {
namespace {

TEST(Reactor, ReadsSubmittedInOneTurnShareOneKernelEntry) {
  Logger log("test", LogLevel::kWarning);
  auto made = Reactor::create({}, log);
  ASSERT_TRUE(made.ok()) << made.error().message();
  Reactor& reactor = **made;
  char path[] = "/tmp/reactor-XXXXXX";
  Fd file(mkstemp(path));
  unlink(path);
  ASSERT_EQ(0, ftruncate(file.get(), 1 << 20));

  static int left;
  static Reactor* r;
  left = 32;
  r = &reactor;
  struct Read {
    FileOp op;
    iovec iov;
    std::array<char, 4096> buf;
  };
  std::vector<Read> reads(32);
  for (size_t i = 0; i < reads.size(); ++i) {
    auto& rd = reads[i];
    rd.iov = {rd.buf.data(), rd.buf.size()};
    rd.op.fd = file.get();
    rd.op.iov = &rd.iov;
    rd.op.iov_count = 1;
    rd.op.offset = i * 4096;
    rd.op.done = [](FileOp&, int64_t result) {
      EXPECT_EQ(4096, result);
      if (--left == 0) r->stop();
    };
    reactor.submit(rd.op);
  }
  ASSERT_TRUE(reactor.run().ok());
  EXPECT_EQ(0, left);
  EXPECT_EQ(32u, reactor.counters().file_ops);
  EXPECT_LE(reactor.counters().kernel_entries, 4u);
}

}  // namespace
}  // namespace vbdkit::io
