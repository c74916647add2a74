// SPDX-License-Identifier: LGPL-2.1-or-later
#include "io/gated_reactor.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <string>
#include <vector>

namespace vbdkit::io {
namespace {

struct TestGate final : FileGate {
  State now = State::kOpen;
  unsigned asked = 0;
  unsigned held = 0;
  std::function<void()> on_holding;

  State state() override {
    ++asked;
    return now;
  }
  void holding() override {
    ++held;
    if (on_holding) on_holding();
  }
};

struct Write : FileOp {
  int64_t result = 1;
  iovec memory{};
  std::vector<Write*>* order = nullptr;
  std::function<void()> then;

  void aim(int file, uint64_t at, char* byte, std::vector<Write*>& ends) {
    kind = Kind::kWrite;
    fd = file;
    offset = at;
    memory = {byte, 1};
    iov = &memory;
    iov_count = 1;
    order = &ends;
    done = [](FileOp& op, int64_t r) {
      auto& self = static_cast<Write&>(op);
      self.result = r;
      self.order->push_back(&self);
      if (self.then) self.then();
    };
  }
};

class GatedReactorTest : public testing::TestWithParam<EngineKind> {
 protected:
  void SetUp() override {
    auto created = Reactor::create({.engine = GetParam()}, log_);
    if (!created) GTEST_SKIP() << created.error().message();
    inner_ = std::move(*created);
    reactor_ = std::make_unique<GatedReactor>(*inner_);
    file_ = Fd(::fileno(tmp_));
  }
  void TearDown() override {
    file_.release();
    std::fclose(tmp_);
  }

  // `count` bytes, one write each.
  void submit(size_t count) {
    writes_ = std::vector<Write>(count);
    bytes_.assign(count, 'x');
    for (size_t i = 0; i < count; ++i) {
      writes_[i].aim(file_.get(), i, &bytes_[i], order_);
      reactor_->submit(writes_[i]);
    }
    writes_.back().then = [this] { reactor_->stop(); };
  }
  std::string content() const {
    std::string text(1000, '\0');
    const ssize_t n = ::pread(file_.get(), text.data(), text.size(), 0);
    return text.substr(0, n > 0 ? static_cast<size_t>(n) : 0);
  }
  void stop_when_all_ended() {
    for (Write& write : writes_)
      write.then = [this] {
        if (order_.size() == writes_.size()) reactor_->stop();
      };
  }

  const Logger log_{"test", LogLevel::kWarning};
  std::FILE* tmp_ = std::tmpfile();
  Fd file_;
  std::unique_ptr<Reactor> inner_;
  std::unique_ptr<GatedReactor> reactor_;
  TestGate gate_;
  std::vector<Write> writes_;
  std::vector<char> bytes_;
  std::vector<Write*> order_;
};

TEST_P(GatedReactorTest, WithoutAGateItIsTheOneBeneath) {
  submit(3);
  stop_when_all_ended();
  ASSERT_TRUE(reactor_->run());
  EXPECT_EQ(content(), "xxx");
}

TEST_P(GatedReactorTest, AsksOnceForABatch) {
  reactor_->set_gate(&gate_);
  submit(64);
  stop_when_all_ended();
  ASSERT_TRUE(reactor_->run());
  EXPECT_EQ(content(), std::string(64, 'x'));
  // Plain system calls are let through one at a time.
  if (GetParam() != EngineKind::kSync) {
    EXPECT_LE(gate_.asked, 3u);
  }
  EXPECT_EQ(reactor_->in_flight(), 0u);
  reactor_->set_gate(nullptr);
}

TEST_P(GatedReactorTest, HoldsWhileClosedAndGoesOnInOrder) {
  reactor_->set_gate(&gate_);
  gate_.now = FileGate::State::kClosed;
  gate_.on_holding = [this] { reactor_->stop(); };
  submit(200);
  writes_.back().then = {};
  ASSERT_TRUE(reactor_->run());
  EXPECT_EQ(gate_.held, 1u);
  EXPECT_EQ(content(), "");
  EXPECT_EQ(reactor_->held(), 200u);
  EXPECT_TRUE(order_.empty());

  gate_.now = FileGate::State::kOpen;
  stop_when_all_ended();
  reactor_->look_again();
  ASSERT_TRUE(reactor_->run());
  EXPECT_EQ(order_.size(), 200u);
  EXPECT_EQ(content(), std::string(200, 'x'));
  for (const Write& write : writes_) EXPECT_EQ(write.result, 1);
  reactor_->set_gate(nullptr);
}

TEST_P(GatedReactorTest, FailsWhatIsHeldAndWhatComesAfter) {
  reactor_->set_gate(&gate_);
  gate_.now = FileGate::State::kFailed;
  submit(5);
  stop_when_all_ended();
  ASSERT_TRUE(reactor_->run());
  EXPECT_EQ(content(), "");
  for (const Write& write : writes_) EXPECT_EQ(write.result, -EIO);
  reactor_->set_gate(nullptr);
}

// Whoever is told may submit more at once.
TEST_P(GatedReactorTest, SubmittingInsideOfDoneIsTaken) {
  reactor_->set_gate(&gate_);
  submit(1);
  Write second;
  char byte = 'y';
  second.aim(file_.get(), 1, &byte, order_);
  second.then = [this] { reactor_->stop(); };
  writes_[0].then = [&] { reactor_->submit(second); };
  ASSERT_TRUE(reactor_->run());
  EXPECT_EQ(content(), "xy");
  reactor_->set_gate(nullptr);
}

INSTANTIATE_TEST_SUITE_P(Engines, GatedReactorTest,
                         testing::Values(EngineKind::kUring, EngineKind::kAio, EngineKind::kSync));

}  // namespace
}  // namespace vbdkit::io
