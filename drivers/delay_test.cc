// SPDX-License-Identifier: LGPL-2.1-or-later
#include <gtest/gtest.h>

#include <array>
#include <chrono>

#include "drivers/registry.h"

namespace vbdkit::drivers {
namespace {

using Clock = std::chrono::steady_clock;

class DelayTest : public testing::Test {
 protected:
  DelayTest() : log_("test", LogLevel::kError) {
    auto reactor = io::Reactor::create({}, log_);
    EXPECT_TRUE(reactor.ok());
    reactor_ = std::move(reactor).value();
  }
  Result<NodePtr> open(const std::string& spec) {
    VBDKIT_ASSIGN(const GraphSpec graph, parse_graph(spec));
    return open_graph(graph, {*reactor_, log_, {}});
  }

  Logger log_;
  std::unique_ptr<io::Reactor> reactor_;
};

struct Read : Request {
  io::Reactor* reactor = nullptr;
  std::vector<Read*>* finished = nullptr;
  size_t last = 0;
  Clock::time_point end{};
};

TEST_F(DelayTest, RequestsWaitTheirTimeAndEndInTheirOrder) {
  auto node = open("delay:ms=20|null,size=1M");
  ASSERT_TRUE(node.ok()) << node.error().message();
  std::array<Read, 3> reads;
  std::array<char, 512> buffer{};
  iovec iov{buffer.data(), buffer.size()};
  std::vector<Read*> finished;
  const auto start = Clock::now();
  for (Read& read : reads) {
    read.iov = &iov;
    read.iov_count = 1;
    read.length = iov.iov_len;
    read.reactor = reactor_.get();
    read.finished = &finished;
    read.last = reads.size();
    read.done = [](Request& request, int error) {
      auto& self = static_cast<Read&>(request);
      EXPECT_EQ(0, error);
      self.end = Clock::now();
      self.finished->push_back(&self);
      if (self.finished->size() == self.last) self.reactor->stop();
    };
    (*node)->submit(read);
  }
  EXPECT_TRUE(finished.empty());
  ASSERT_TRUE(reactor_->run().ok());
  ASSERT_EQ(reads.size(), finished.size());
  for (size_t i = 0; i < reads.size(); ++i) {
    EXPECT_EQ(&reads[i], finished[i]);
    EXPECT_GE(reads[i].end - start, std::chrono::milliseconds(20));
  }
}

TEST_F(DelayTest, NobodyWaitsForHours) {
  const auto node = open("delay:ms=60001|null,size=1M");
  ASSERT_FALSE(node.ok());
  EXPECT_EQ("delay: ms=60001: at most 60000 milliseconds", node.error().message());
}

}  // namespace
}  // namespace vbdkit::drivers
