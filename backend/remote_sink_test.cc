// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/remote_sink.h"

#include <gtest/gtest.h>

#include <deque>
#include <thread>

#include "base/log.h"

namespace vbdkit {
namespace {

const Logger kLog("remote_sink_test", LogLevel::kError);

// Completes what it gets one turn later, and remembers on which thread and in which order it came.
class FarSink : public RequestSink {
 public:
  explicit FarSink(io::Reactor& reactor) : reactor_(reactor) {
    turn_.self = this;
    turn_.run = [](io::Deferred& d) { static_cast<Turn&>(d).self->complete(); };
  }
  void submit(drivers::Request& request) override {
    threads_seen_ok = threads_seen_ok && std::this_thread::get_id() == thread;
    offsets.push_back(request.offset);
    waiting_.push_back(&request);
    reactor_.defer(turn_);
  }
  const drivers::NodeInfo& info() const override { return info_; }

  std::thread::id thread;
  bool threads_seen_ok = true;
  std::vector<uint64_t> offsets;

 private:
  struct Turn : io::Deferred {
    FarSink* self = nullptr;
  };
  void complete() {
    for (auto batch = std::exchange(waiting_, {}); !batch.empty(); batch.pop_front())
      batch.front()->done(*batch.front(), batch.front()->offset % 3 == 0 ? EIO : 0);
  }
  io::Reactor& reactor_;
  Turn turn_;
  drivers::NodeInfo info_;
  std::deque<drivers::Request*> waiting_;
};

class RemoteSinkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto near = io::Reactor::create({}, kLog);
    auto far = io::Reactor::create({}, kLog);
    ASSERT_TRUE(near.ok() && far.ok());
    near_ = std::move(near).value();
    far_ = std::move(far).value();
    target_ = std::make_unique<FarSink>(*far_);
    drivers::NodeInfo info;
    info.size = Bytes{4096};
    sink_ = std::make_unique<RemoteSink>(*near_, *far_, *target_, info);
    thread_ = std::thread([this] { EXPECT_TRUE(far_->run().ok()); });
    target_->thread = thread_.get_id();
  }
  void TearDown() override {
    far_->stop();
    thread_.join();
  }

  std::unique_ptr<io::Reactor> near_, far_;
  std::unique_ptr<FarSink> target_;
  std::unique_ptr<RemoteSink> sink_;
  std::thread thread_;
};

// Keeps `depth` requests in flight until `total` are done.
struct Load {
  struct Item : drivers::Request {
    Load* load = nullptr;
    uint64_t expected = 0;
  };
  Load(io::Reactor& r, RequestSink& s, unsigned depth, uint64_t count)
      : reactor(r), sink(s), items(depth), total(count) {
    for (Item& item : items) {
      item.load = this;
      item.done = [](drivers::Request& request, int error) {
        auto& i = static_cast<Item&>(request);
        i.load->finished(i, error);
      };
    }
  }
  void start() {
    for (Item& item : items) next(item);
  }
  void next(Item& item) {
    item.offset = issued++;
    item.expected = item.offset;
    sink.submit(item);
  }
  void finished(Item& item, int error) {
    here = here && std::this_thread::get_id() == home;
    right = right && item.offset == item.expected && error == (item.offset % 3 == 0 ? EIO : 0);
    ++completed;
    if (issued < total)
      next(item);
    else if (completed == total)
      reactor.stop();
  }

  io::Reactor& reactor;
  RequestSink& sink;
  std::vector<Item> items;
  uint64_t total;
  uint64_t issued = 0;
  uint64_t completed = 0;
  bool here = true;
  bool right = true;
  std::thread::id home = std::this_thread::get_id();
};

TEST_F(RemoteSinkTest, EachRequestComesBackOnceOnItsOwnThread) {
  Load load(*near_, *sink_, 32, 20000);
  near_->post([&] { load.start(); });
  ASSERT_TRUE(near_->run().ok());
  EXPECT_EQ(load.completed, load.total);
  EXPECT_TRUE(load.here);
  EXPECT_TRUE(load.right);
  EXPECT_TRUE(target_->threads_seen_ok);
  // In the order in which they were submitted: a barrier counts on it.
  ASSERT_EQ(target_->offsets.size(), load.total);
  for (uint64_t i = 0; i < load.total; ++i) ASSERT_EQ(target_->offsets[i], i);
}

TEST_F(RemoteSinkTest, ABatchCostsOneWake) {
  Load load(*near_, *sink_, 32, 3200);
  near_->post([&] { load.start(); });
  ASSERT_TRUE(near_->run().ok());
  // A turn of the near loop for each batch that came back, not for each request.
  EXPECT_LT(near_->counters().turns, load.total / 4);
}

TEST_F(RemoteSinkTest, LearnsOfANewSize) {
  EXPECT_EQ(sink_->info().size.v, 4096u);
  drivers::NodeInfo grown;
  grown.size = Bytes{8192};
  far_->post([&] {
    sink_->set_info(grown);
    near_->stop();
  });
  near_->post([] {});
  ASSERT_TRUE(near_->run().ok());
  near_->post([&] { near_->stop(); });
  ASSERT_TRUE(near_->run().ok());
  EXPECT_EQ(sink_->info().size.v, 8192u);
}

}  // namespace
}  // namespace vbdkit
