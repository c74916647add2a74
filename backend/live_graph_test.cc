// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/live_graph.h"

#include <gtest/gtest.h>

#include <deque>
#include <optional>
#include <string>
#include <vector>

namespace vbdkit {
namespace {

using drivers::Node;
using drivers::NodePtr;
using drivers::Op;
using drivers::Request;

// A loop that the test turns by hand.
class ManualReactor final : public io::Reactor {
 public:
  Result<void> run() override { return {}; }
  void submit(io::FileOp&) override { FAIL(); }
  void submit(io::SocketOp&) override { FAIL(); }
  void defer(io::Deferred& d) override {
    if (std::exchange(d.queued, true)) return;
    post([&d] {
      d.queued = false;
      d.run(d);
    });
  }
  std::unique_ptr<io::FdWatch> watch(int, std::function<void()>) override { return nullptr; }
  std::unique_ptr<io::Timer> timer(std::function<void()>) override { return nullptr; }
  void post(std::function<void()> task) override { queue_.push_back(std::move(task)); }
  void stop() override {}
  const char* engine_name() const override { return "manual"; }
  const io::ReactorCounters& counters() const override { return counters_; }

  void turn() {
    while (!queue_.empty()) {
      const auto task = std::move(queue_.front());
      queue_.pop_front();
      task();
    }
  }

 private:
  std::deque<std::function<void()>> queue_;
  io::ReactorCounters counters_;
};

// What the nodes of a test have in common, and outlives them.
struct Bench {
  std::vector<Request*> held;  // until the test completes them
  std::vector<drivers::StatusRequest*> questions;
  std::vector<std::string> destroyed;
  bool broken = false;  // requests in flight when a node was destroyed

  void complete(int error = 0) {
    Request& r = *held.front();
    held.erase(held.begin());
    r.done(r, error);
  }
};

class HeldLeaf final : public Node {
 public:
  HeldLeaf(Bench& bench, std::string name) : bench_(bench), name_(std::move(name)) {
    info_.size = Bytes{1 << 20};
    info_.request_alignment = 512;
  }
  ~HeldLeaf() override {
    bench_.broken = bench_.broken || !bench_.held.empty() || !bench_.questions.empty();
    bench_.destroyed.push_back(name_);
  }
  std::string_view driver() const override { return "held"; }
  std::string spec() const override { return name_; }
  const drivers::NodeInfo& info() const override { return info_; }
  void submit(Request& r) override { bench_.held.push_back(&r); }
  void block_status(drivers::StatusRequest& r) override { bench_.questions.push_back(&r); }
  Result<void> refresh_size() override { return {}; }
  Result<void> resize(Bytes) override { return {}; }
  Result<void> reopen(bool) override { return {}; }

 private:
  Bench& bench_;
  const std::string name_;
  drivers::NodeInfo info_;
};

class NamedFilter final : public drivers::Filter {
 public:
  NamedFilter(Bench& bench, NodePtr next, std::string name)
      : Filter(std::move(next)), bench_(bench), name_(std::move(name)) {}
  ~NamedFilter() override { bench_.destroyed.push_back(name_); }
  std::string_view driver() const override { return "named"; }
  std::string spec() const override { return name_ + "|" + next().spec(); }

 private:
  Bench& bench_;
  const std::string name_;
};

struct Client : Request {
  explicit Client(Op kind, uint64_t at = 0) {
    op = kind;
    offset = at;
    length = kind == Op::kFlush ? 0 : 512;
    done = [](Request& r, int result) { static_cast<Client&>(r).error = result; };
  }
  int error = -1;
};

class LiveGraphTest : public testing::Test {
 protected:
  LiveGraphTest() {
    graph_.emplace(reactor_, std::make_unique<HeldLeaf>(bench_, "a"));
    graph_->on_changed([this] { ++changed_; });
  }
  void submit(Client& client) {
    graph_->scheduler().submit(client);
    reactor_.turn();
  }
  LiveGraph::Change to(const std::string& name) {
    return {.apply = [this, name](NodePtr& top) -> Result<void> {
              top = std::make_unique<HeldLeaf>(bench_, name);
              return {};
            },
            .done = [this, name](Result<void> r) { log_ += name + (r.ok() ? "+ " : "- "); }};
  }
  LiveGraph::MakeFilter make(const std::string& name) {
    return [this, name](NodePtr next) {
      return std::make_unique<NamedFilter>(bench_, std::move(next), name);
    };
  }
  LiveGraph::Done note(const std::string& name) {
    return [this, name](Result<void> r) { log_ += name + (r.ok() ? "+ " : "- "); };
  }

  Bench bench_;
  ManualReactor reactor_;
  std::optional<LiveGraph> graph_;
  unsigned changed_ = 0;
  std::string log_;
};

TEST_F(LiveGraphTest, AChangeWaitsForWhatIsInFlightAndLaterRequestsGoToTheNewNode) {
  Client before(Op::kWrite), after(Op::kWrite, 4096);
  submit(before);
  graph_->change(to("b"));
  reactor_.turn();
  submit(after);
  EXPECT_EQ(1u, bench_.held.size());
  EXPECT_TRUE(bench_.destroyed.empty());
  bench_.complete();
  reactor_.turn();
  EXPECT_EQ("b+ ", log_);
  EXPECT_EQ("b", graph_->top().spec());
  EXPECT_EQ(0, before.error);
  ASSERT_EQ(1u, bench_.held.size()) << "the request that waited is at the new node";
  bench_.complete();
  EXPECT_EQ(0, after.error);
  EXPECT_FALSE(bench_.broken);
  EXPECT_EQ(1u, changed_);
}

TEST_F(LiveGraphTest, AQuestionOfBlockStatusIsWaitedForAndLaterOnesAskTheNewNode) {
  drivers::StatusRequest first, second;
  int answers = 0;
  first.length = second.length = 512;
  first.done = second.done = [&](int) { ++answers; };
  graph_->scheduler().block_status(first);
  graph_->change(to("b"));
  reactor_.turn();
  graph_->scheduler().block_status(second);
  reactor_.turn();
  ASSERT_EQ(1u, bench_.questions.size());
  EXPECT_EQ("a", graph_->top().spec());
  bench_.questions.clear();
  first.done(0);
  reactor_.turn();
  EXPECT_EQ("b", graph_->top().spec());
  ASSERT_EQ(std::vector{&second}, bench_.questions);
  bench_.questions.clear();
  second.done(0);
  EXPECT_EQ(2, answers);
  EXPECT_FALSE(bench_.broken);
}

TEST_F(LiveGraphTest, AChangeThatDependsOnOthersHoldsTheDiskUntilItIsKnown) {
  for (const bool taken : {false, true}) {
    LiveGraph::Done go;
    auto b = to("b");
    b.hold = [&](LiveGraph::Done known) { go = std::move(known); };
    Client before(Op::kWrite), meanwhile(Op::kWrite);
    submit(before);
    graph_->change(std::move(b));
    reactor_.turn();
    EXPECT_FALSE(go) << "something is in flight";
    bench_.complete();
    reactor_.turn();
    ASSERT_TRUE(go);
    submit(meanwhile);
    EXPECT_TRUE(bench_.held.empty());
    go(taken ? Result<void>() : Error(ErrorKind::kTimedOut, "nobody says"));
    reactor_.turn();
    EXPECT_EQ(taken ? "b" : "a", graph_->top().spec());
    ASSERT_EQ(1u, bench_.held.size());
    bench_.complete();
    EXPECT_EQ(0, meanwhile.error);
  }
  EXPECT_EQ("b- b+ ", log_);
}

TEST_F(LiveGraphTest, TheNextChangeWaitsUntilFilesAreTidiedAndGuestsDoNot) {
  for (const bool good : {true, false}) {
    std::function<void()> tidied;
    auto b = to("b");
    if (!good) b.apply = [](NodePtr&) -> Result<void> { return Error(ErrorKind::kIo, "no"); };
    b.tidy = [&](const Result<void>& result, std::function<void()> done) {
      EXPECT_EQ(good, result.ok());
      tidied = std::move(done);
    };
    graph_->change(std::move(b));
    graph_->change(to("c"));
    reactor_.turn();
    ASSERT_TRUE(tidied);
    Client request(Op::kRead);
    submit(request);
    ASSERT_EQ(1u, bench_.held.size());
    bench_.complete();
    EXPECT_EQ("", log_);
    EXPECT_TRUE(graph_->changing());
    tidied();
    reactor_.turn();
    EXPECT_EQ(good ? "b+ c+ " : "b- c+ ", log_);
    log_.clear();
  }
}

TEST_F(LiveGraphTest, ChangesRunOneAfterTheOther) {
  Client request(Op::kRead);
  submit(request);
  LiveGraph::Done ready;
  auto b = to("b");
  b.prepare = [&](LiveGraph::Done go_on) { ready = std::move(go_on); };
  graph_->change(std::move(b));
  graph_->change(to("c"));
  reactor_.turn();
  bench_.complete();
  reactor_.turn();
  EXPECT_EQ("", log_) << "the second waits for the first one's preparation";
  ready({});
  reactor_.turn();
  EXPECT_EQ("b+ c+ ", log_);
  EXPECT_EQ("c", graph_->top().spec());
}

TEST_F(LiveGraphTest, TheDiskRunsWhileAChangeIsPrepared) {
  auto b = to("b");
  LiveGraph::Done ready;
  b.prepare = [&](LiveGraph::Done go_on) { ready = std::move(go_on); };
  graph_->change(std::move(b));
  reactor_.turn();
  Client request(Op::kWrite);
  submit(request);
  ASSERT_EQ(1u, bench_.held.size());
  bench_.complete();
  EXPECT_EQ(0, request.error);
  ready(Error(ErrorKind::kIo, "no"));
  reactor_.turn();
  EXPECT_EQ("b- ", log_);
  EXPECT_EQ("a", graph_->top().spec());
  EXPECT_EQ(0u, changed_);
}

TEST_F(LiveGraphTest, AFlushThatFailsEndsTheChangeAndTheDiskGoesOn) {
  for (const unsigned good : {0u, 1u}) {
    auto b = to("b");
    b.flush = true;
    graph_->change(std::move(b));
    reactor_.turn();
    for (unsigned i = 0; i <= good; ++i) {
      ASSERT_EQ(1u, bench_.held.size());
      EXPECT_EQ(Op::kFlush, bench_.held[0]->op);
      bench_.complete(i == good ? ENOSPC : 0);
      reactor_.turn();
    }
    EXPECT_EQ("b- ", std::exchange(log_, {}));
    Client request(Op::kWrite);
    submit(request);
    ASSERT_EQ(1u, bench_.held.size());
    bench_.complete();
  }
  EXPECT_EQ("a", graph_->top().spec());
}

TEST_F(LiveGraphTest, AFlushedChangeFlushesTwiceAndIsApplied) {
  auto b = to("b");
  b.flush = true;
  graph_->change(std::move(b));
  for (int i = 0; i < 2; ++i) {
    reactor_.turn();
    ASSERT_EQ(1u, bench_.held.size());
    bench_.complete();
  }
  reactor_.turn();
  EXPECT_EQ("b+ ", log_);
  EXPECT_TRUE(graph_->scheduler().idle());
}

TEST_F(LiveGraphTest, FiltersComeAndGoWhereTheyAreAsked) {
  graph_->insert_filter(LiveGraph::Place::kTop, make("top"), note("top"));
  graph_->insert_filter(LiveGraph::Place::kAboveImage, make("low"), note("low"));
  reactor_.turn();
  EXPECT_EQ("top+ low+ ", log_);
  EXPECT_EQ("top|low|a", graph_->top().spec());
  EXPECT_EQ("a", graph_->image().spec());
  Node& low = *graph_->top().next_node();
  graph_->remove_filter(low, note("less"));
  reactor_.turn();
  EXPECT_EQ("top|a", graph_->top().spec());
  graph_->remove_filter(graph_->image(), note("leaf"));
  graph_->remove_filter(graph_->top(), note("all"));
  reactor_.turn();
  EXPECT_EQ("a", graph_->top().spec());
  EXPECT_EQ("top+ low+ less+ leaf- all+ ", log_);
  EXPECT_EQ((std::vector<std::string>{"low", "top"}), bench_.destroyed);
}

TEST_F(LiveGraphTest, APauseOfSomebodyElseOutlastsAChange) {
  graph_->scheduler().pause([] {});
  graph_->change(to("b"));
  Client request(Op::kRead);
  submit(request);
  EXPECT_EQ("b+ ", log_);
  EXPECT_TRUE(bench_.held.empty());
  auto c = to("c");
  c.flush = true;
  graph_->change(std::move(c));
  for (int i = 0; i < 2; ++i) {
    reactor_.turn();
    ASSERT_EQ(1u, bench_.held.size());
    bench_.complete();
  }
  reactor_.turn();
  EXPECT_EQ("b+ c+ ", log_);
  EXPECT_TRUE(bench_.held.empty());
  graph_->scheduler().resume();
  reactor_.turn();
  EXPECT_EQ(1u, bench_.held.size());
}

TEST_F(LiveGraphTest, ClosingWaitsForChangesAndRefusesMore) {
  Client request(Op::kRead);
  submit(request);
  graph_->change(to("b"));
  bool closed = false;
  graph_->close([&] { closed = true; });
  graph_->change(to("c"));
  reactor_.turn();
  EXPECT_EQ("c- ", log_);
  EXPECT_FALSE(closed);
  bench_.complete();
  reactor_.turn();
  EXPECT_EQ("c- b+ ", log_);
  EXPECT_TRUE(closed);
}

TEST_F(LiveGraphTest, DestroyedInTheMiddleItLeavesNothingBehindInTheLoop) {
  auto b = to("b");
  LiveGraph::Done ready;
  b.prepare = [&](LiveGraph::Done go_on) { ready = std::move(go_on); };
  graph_->change(std::move(b));
  reactor_.turn();
  graph_.reset();
  ready({});
  reactor_.turn();
  EXPECT_EQ("", log_);
}

}  // namespace
}  // namespace vbdkit
