// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Chains that change under load: a guest that verifies all it reads goes on writing while leaves
// are put in front and parents are looked at again. What a change costs is told as counts.
#include "drivers/chain/live_chain.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <fstream>
#include <random>

#include "backend/live_graph.h"
#include "drivers/image_snapshot.h"
#include "drivers/vhd/test_image.h"

namespace vbdkit {
namespace {

using drivers::ChainNode;
using drivers::NodeSpec;
using drivers::Op;
using drivers::Request;

constexpr uint64_t kDisk = 4 << 20;  // bytes

// A guest with a number of requests in flight, who knows what the disk must read.
class Guest {
 public:
  static constexpr size_t kDepth = 8;

  Guest(Scheduler& scheduler, uint64_t seed, std::vector<char> disk = std::vector<char>(kDisk))
      : scheduler_(scheduler), random_(seed), disk_(std::move(disk)) {
    for (Io& io : ios_) io.guest = this;
  }

  // So many requests more; `idle` when the last is done.
  void run(uint64_t requests, std::function<void()> idle) {
    left_ += requests;
    idle_ = std::move(idle);
    for (Io& io : ios_)
      if (!io.busy) next(io);
  }
  uint64_t done() const { return done_; }
  uint64_t mismatches() const { return mismatches_; }
  uint64_t errors() const { return errors_; }
  const std::vector<char>& disk() const { return disk_; }

 private:
  struct Io : Request {
    Guest* guest = nullptr;
    std::vector<char> memory;
    std::vector<char> expected;
    iovec vector{};
    bool busy = false;
  };

  void next(Io& io) {
    if (left_ == 0) {
      if (std::none_of(ios_.begin(), ios_.end(), [](const Io& i) { return i.busy; }) && idle_)
        std::exchange(idle_, nullptr)();
      return;
    }
    --left_;
    io.busy = true;
    const uint64_t start = random_() % (kDisk / 512) * 512;
    io.offset = start;
    io.length = std::min<uint64_t>((1 + random_() % 64) * 512, kDisk - start);
    const uint64_t what = random_() % 20;
    io.op = what < 9    ? Op::kRead
            : what < 17 ? Op::kWrite
            : what < 18 ? Op::kWriteZeroes
                        : Op::kFlush;
    io.flags = io.op == Op::kWriteZeroes ? drivers::kMayUnmap : 0;
    if (io.op == Op::kFlush) io.offset = io.length = 0;
    io.memory.assign(io.length, 0);
    char* const at = disk_.data() + io.offset;
    if (io.op == Op::kWrite) {
      for (size_t i = 0; i < io.length; i += 8) {
        const uint64_t word = random_();
        std::memcpy(&io.memory[i], &word, 8);
      }
      std::memcpy(at, io.memory.data(), io.length);
    } else if (io.op == Op::kWriteZeroes) {
      std::memset(at, 0, io.length);
    } else if (io.op == Op::kRead) {
      io.expected.assign(at, at + io.length);  // overlapping requests keep their order
    }
    io.vector = {io.memory.data(), io.length};
    io.iov = &io.vector;
    io.iov_count = io.op == Op::kRead || io.op == Op::kWrite;
    io.done = [](Request& r, int error) { static_cast<Io&>(r).guest->completed(r, error); };
    scheduler_.submit(io);
  }

  void completed(Request& request, int error) {
    Io& io = static_cast<Io&>(request);
    io.busy = false;
    ++done_;
    errors_ += error != 0;
    mismatches_ += error == 0 && io.op == Op::kRead && io.memory != io.expected;
    next(io);
  }

  Scheduler& scheduler_;
  std::mt19937_64 random_;
  std::vector<char> disk_;
  std::array<Io, kDepth> ios_;
  uint64_t left_ = 0;
  uint64_t done_ = 0;
  uint64_t mismatches_ = 0;
  uint64_t errors_ = 0;
  std::function<void()> idle_;
};

uint64_t reads_so_far() {
  std::ifstream file("/proc/thread-self/io");
  for (std::string word; file >> word;)
    if (word == "syscr:") {
      uint64_t count = 0;
      file >> count;
      return count;
    }
  return 0;
}

// The system calls that read, of this thread, while `fn` runs.
template <typename Fn>
uint64_t reads_of(Fn fn) {
  const uint64_t first = reads_so_far();
  const uint64_t before = reads_so_far();  // asking costs some itself
  fn();
  return reads_so_far() - before - (before - first);
}

class LiveChainTest : public testing::TestWithParam<const char*> {
 protected:
  LiveChainTest()
      : log_("test", LogLevel::kWarning),
        reactor_(std::move(io::Reactor::create({}, log_)).value()) {}

  std::string format() const { return GetParam(); }
  std::string path(const std::string& name) const { return (directory_ / name) + "." + format(); }
  NodeSpec spec(const std::string& name) const { return {format(), path(name), {}}; }

  void create(const std::string& name, const std::string& parent = {}) {
    drivers::CreateRequest request;
    request.path = path(name);
    request.size = Bytes{parent.empty() ? kDisk : 0};
    if (!parent.empty()) {
      request.parent = path(parent);
      request.parent_format = format();
    }
    const auto made = drivers::find_image_format(format())->create(request);
    ASSERT_TRUE(made.ok()) << made.error().message();
  }
  drivers::OpenContext context() const { return {*reactor_, log_, {}}; }
  void open(const std::string& name) {
    graph_.reset();
    auto node = drivers::open_graph({{spec(name)}}, context());
    ASSERT_TRUE(node.ok()) << node.error().message();
    graph_.emplace(*reactor_, std::move(node).value());
  }
  ChainNode& chain() { return *graph_->chain(); }
  size_t depth() { return chain().chain().layers.size(); }

  // The chain as `change` makes it, with the loop running; its result.
  Result<void> change(LiveGraph::Change change) {
    std::optional<Result<void>> result;
    change.done = [&](Result<void> r) {
      result.emplace(std::move(r));
      reactor_->stop();
    };
    graph_->change(std::move(change));
    while (!result) EXPECT_TRUE(reactor_->run().ok());
    return std::move(*result);
  }
  LiveGraph::Change in_front(const std::string& leaf, const std::string& former) {
    LiveGraph::Change c;
    c.flush = true;
    c.apply = [this, leaf, former](drivers::NodePtr&) {
      Result<void> result;
      reads_in_pause_ = reads_of([&] {
        result = put_in_front(chain(), {spec(leaf), path(former)}, context());
      });
      return result;
    };
    return c;
  }
  Result<void> snapshot(const std::string& leaf, const std::string& former) {
    create(leaf, former);
    return change(in_front(leaf, former));
  }
  Result<void> refresh() {
    auto job = std::make_shared<std::optional<drivers::ChainRefresh>>();
    LiveGraph::Change c;
    c.prepare = [this, job](LiveGraph::Done ready) {
      job->emplace(chain(), context());
      for (;;) {
        const auto more = (*job)->step();
        if (!more) return ready(more.error());
        if (!*more) return ready({});
      }
    };
    c.apply = [this, job](drivers::NodePtr&) {
      Result<void> result;
      reads_in_pause_ = reads_of([&] { result = (*job)->apply(); });
      opened_ = (*job)->opened();
      return result;
    };
    return change(std::move(c));
  }
  void run_guest(Guest& guest, uint64_t requests) {
    bool idle = false;
    guest.run(requests, [&] {
      idle = true;
      reactor_->stop();
    });
    while (!idle) ASSERT_TRUE(reactor_->run().ok());
    EXPECT_EQ(0u, guest.mismatches());
    EXPECT_EQ(0u, guest.errors());
  }
  std::vector<char> read_all() {
    struct All : Request {
      io::Reactor* reactor = nullptr;
      int error = -1;
    } all;
    std::vector<char> memory(kDisk);
    iovec iov{memory.data(), kDisk};
    all.reactor = reactor_.get();
    all.iov = &iov;
    all.iov_count = 1;
    all.length = kDisk;
    all.done = [](Request& r, int error) {
      static_cast<All&>(r).error = error;
      static_cast<All&>(r).reactor->stop();
    };
    graph_->scheduler().submit(all);
    EXPECT_TRUE(reactor_->run().ok());
    EXPECT_EQ(0, all.error);
    return memory;
  }
  void expect_clean() {
    graph_.reset();
    for (const auto& file : std::filesystem::directory_iterator(directory_.path())) {
      const auto checked = drivers::find_image_format(format())->check(file.path(), false);
      ASSERT_TRUE(checked.ok()) << checked.error().message();
      EXPECT_EQ(0u, checked->errors + checked->remains) << file.path();
    }
  }

  drivers::vhd::TestDirectory directory_;
  Logger log_;
  std::unique_ptr<io::Reactor> reactor_;
  std::optional<LiveGraph> graph_;
  uint64_t reads_in_pause_ = 0;
  size_t opened_ = 0;
};

TEST_P(LiveChainTest, AGuestWritesOnWhileLeavesArePutInFront) {
  create("0");
  open("0");
  Guest guest(graph_->scheduler(), 1);
  std::string leaf = "0";
  bool going = true;
  uint64_t at_last = 0;
  for (int i = 1; i <= 24; ++i) {
    // It goes on to the end of the change, and some more.
    guest.run(60, [&] { going = false; });
    const std::string next = std::to_string(i);
    const auto taken = snapshot(next, leaf);
    ASSERT_TRUE(taken.ok()) << taken.error().message();
    leaf = next;
    run_guest(guest, 40);
    EXPECT_GT(guest.done(), at_last);
    at_last = guest.done();
  }
  EXPECT_EQ(25u, depth());
  EXPECT_EQ(guest.disk(), read_all());
  open(leaf);
  EXPECT_EQ(25u, depth());
  EXPECT_EQ(guest.disk(), read_all());
  expect_clean();
}

TEST_P(LiveChainTest, ASnapshotKeepsTheMapAndCostsTheSameAtAnyDepth) {
  std::vector<uint64_t> reads;
  for (const size_t wanted : {2, 64}) {  // a leaf that has a parent is more to read than a base
    for (size_t i = 0; i < wanted; ++i)
      create(std::to_string(wanted) + "." + std::to_string(i),
             i == 0 ? "" : std::to_string(wanted) + "." + std::to_string(i - 1));
    const std::string leaf = std::to_string(wanted) + "." + std::to_string(wanted - 1);
    open(leaf);
    Guest guest(graph_->scheduler(), 2);
    run_guest(guest, 200);
    EXPECT_EQ(guest.disk(), read_all());
    const size_t windows = chain().map().windows();
    EXPECT_GT(windows, 0u);
    const uint64_t before = reactor_->counters().file_ops;
    read_all();
    const uint64_t known = reactor_->counters().file_ops - before;
    const auto taken = snapshot(leaf + "s", leaf);
    ASSERT_TRUE(taken.ok()) << taken.error().message();
    reads.push_back(reads_in_pause_);
    EXPECT_EQ(windows, chain().map().windows());
    const uint64_t after = reactor_->counters().file_ops;
    EXPECT_EQ(guest.disk(), read_all());
    EXPECT_EQ(known, reactor_->counters().file_ops - after) << "no metadata are read again";
  }
  EXPECT_GT(reads[0], 0u);
  EXPECT_EQ(reads[0], reads[1]);
}

TEST_P(LiveChainTest, WhereTheNewLeafIsNoneTheOldOneGoesOn) {
  create("base");
  create("other");
  create("child", "other");
  open("base");
  Guest guest(graph_->scheduler(), 3);
  run_guest(guest, 100);
  // Not there; without a parent; on another one.
  for (const char* leaf : {"missing", "other", "child"}) {
    const auto taken = change(in_front(leaf, "base"));
    ASSERT_FALSE(taken.ok()) << leaf;
    EXPECT_EQ(1u, depth());
    run_guest(guest, 100);
  }
  EXPECT_EQ(guest.disk(), read_all());
  // It has the lock of a writer again.
  EXPECT_FALSE(drivers::ImageLock::take(path("base"), drivers::LockMode::kReader).ok());
  // A former leaf lets others read.
  ASSERT_TRUE(snapshot("leaf", "base").ok());
  EXPECT_TRUE(drivers::ImageLock::take(path("base"), drivers::LockMode::kReader).ok());
  EXPECT_FALSE(drivers::ImageLock::take(path("base"), drivers::LockMode::kWriter).ok());
  EXPECT_FALSE(drivers::ImageLock::take(path("leaf"), drivers::LockMode::kReader).ok());
  run_guest(guest, 100);
  expect_clean();
}

TEST_P(LiveChainTest, TheImageKeepsItsNameAndTheContentGetsAnother) {
  create("disk");
  open("disk");
  Guest guest(graph_->scheduler(), 4);
  run_guest(guest, 200);
  const std::vector<char> then = guest.disk();
  guest.run(50, [] {});
  auto c = in_front("disk", "before");
  std::optional<drivers::ImageSnapshot> files;
  c.prepare = [&](LiveGraph::Done ready) {
    auto prepared = drivers::ImageSnapshot::prepare(spec("disk"), path("before"), {});
    if (!prepared) return ready(prepared.error());
    files.emplace(std::move(*prepared));
    ready(files->commit());
  };
  const auto taken = change(std::move(c));
  ASSERT_TRUE(taken.ok()) << taken.error().message();
  run_guest(guest, 200);
  EXPECT_EQ(2u, depth());
  open("disk");
  EXPECT_EQ(guest.disk(), read_all());
  EXPECT_EQ((std::vector<std::string>{path("disk"), path("before")}), chain().chain().paths);
  expect_clean();
}

TEST_P(LiveChainTest, ARefreshOpensWhatHasChangedOrStandsBeneathAnother) {
  for (int i = 0; i < 6; ++i) create(std::to_string(i), i == 0 ? "" : std::to_string(i - 1));
  for (int i = 0; i < 6; ++i) {
    open(std::to_string(i));
    Guest guest(graph_->scheduler(), 5 + static_cast<uint64_t>(i), read_all());
    run_guest(guest, 30);
  }
  const std::vector<char> content = read_all();
  // Their times must lie behind the clock's tick, or a refresh does not trust them.
  const auto old = std::filesystem::last_write_time(path("5"));
  for (int i = 0; i < 6; ++i) std::filesystem::last_write_time(path(std::to_string(i)), old);
  open("5");
  EXPECT_EQ(content, read_all());
  // The first of them opens all again, if the clock has not ticked since.
  ASSERT_TRUE(refresh().ok());
  do {
    ASSERT_TRUE(refresh().ok());
  } while (opened_ != 0);
  const size_t windows = chain().map().windows();
  // A parent is made to stand on a copy of the one below.
  std::filesystem::copy_file(path("2"), path("copy"));
  const auto patches =
      drivers::find_image_format(format())->plan_parent(path("3"), path("copy"), format());
  ASSERT_TRUE(patches.ok()) << patches.error().message();
  auto file = drivers::ImageFile::open(path("3"), drivers::ImageFile::Mode::kWrite);
  ASSERT_TRUE(file.ok() && drivers::apply_patches(*file, *patches).ok());
  const auto refreshed = refresh();
  ASSERT_TRUE(refreshed.ok()) << refreshed.error().message();
  EXPECT_EQ(3u, opened_);  // it, the copy, and what the copy stands on
  EXPECT_EQ(0u, reads_in_pause_);
  EXPECT_EQ(path("copy"), chain().chain().paths[3]);
  EXPECT_EQ(windows, chain().map().windows());
  EXPECT_EQ(content, read_all());
  EXPECT_TRUE(drivers::ImageLock::take(path("2"), drivers::LockMode::kWriter).ok());
  // A chain that is broken is not taken.
  std::filesystem::rename(path("copy"), path("gone"));
  const auto broken = refresh();
  ASSERT_FALSE(broken.ok());
  EXPECT_NE(std::string::npos, broken.error().message().find(", its parent " + path("3")))
      << broken.error().message();
  EXPECT_EQ(6u, depth());
  EXPECT_EQ(content, read_all());
}

TEST_P(LiveChainTest, AWriterIsPutOnAnotherParentBetweenTwoRequests) {
  create("base");
  open("base");
  Guest first(graph_->scheduler(), 7);
  run_guest(first, 100);
  create("mid", "base");
  create("leaf", "mid");
  open("leaf");
  std::vector<char> content = read_all();
  auto job = std::make_shared<std::optional<drivers::ChainRefresh>>();
  drivers::ParentReference parent;
  parent.path = path("base");
  parent.format = format();
  LiveGraph::Change c;
  c.flush = true;
  c.prepare = [&](LiveGraph::Done ready) {
    job->emplace(chain(), context(), parent);
    for (auto more = (*job)->step();; more = (*job)->step()) {
      if (!more) return ready(more.error());
      if (!*more) return ready({});
    }
  };
  c.apply = [&](drivers::NodePtr&) { return (*job)->apply(); };
  const auto linked = change(std::move(c));
  ASSERT_TRUE(linked.ok()) << linked.error().message();
  EXPECT_EQ(2u, depth());
  EXPECT_EQ(content, read_all());
  EXPECT_TRUE(refresh().ok());
  EXPECT_EQ(2u, depth());
  std::filesystem::remove(path("mid"));
  open("leaf");
  EXPECT_EQ(content, read_all());
  expect_clean();
}

// The coalescer, and nobody else, may write what others read.
TEST_P(LiveChainTest, AParentIsLentToACoalescerAndTakenBack) {
  create("base");
  create("mid", "base");
  create("leaf", "mid");
  open("leaf");
  drivers::Node& base = chain().chain().layers[2]->file();
  using drivers::ImageLock;
  using drivers::LockMode;
  EXPECT_FALSE(ImageLock::take(path("base"), LockMode::kCoalescer).ok());
  ASSERT_TRUE(base.share(drivers::Sharing::kCoalescer).ok());
  {
    const auto coalescer = ImageLock::take(path("base"), LockMode::kCoalescer);
    ASSERT_TRUE(coalescer.ok()) << coalescer.error().message();
    for (const LockMode mode : {LockMode::kReader, LockMode::kWriter, LockMode::kCoalescer})
      EXPECT_FALSE(ImageLock::take(path("base"), mode).ok());
    EXPECT_FALSE(base.share(drivers::Sharing::kAsOpened).ok());
    // Others may come while it is known which layer is merged, and by no other way.
    graph_.reset();
    EXPECT_FALSE(drivers::open_graph({{spec("leaf")}}, context()).ok());
    auto merging = ImageLock::take(path("mid"), LockMode::kReader);
    ASSERT_TRUE(merging.ok() && merging->mark_merging().ok());
    open("leaf");
    create("brother", "base");
    EXPECT_FALSE(drivers::open_graph({{spec("brother")}}, context()).ok());
  }
  for (const auto& layer : chain().chain().layers)
    EXPECT_TRUE(layer->file().share(drivers::Sharing::kAsOpened).ok());
  EXPECT_FALSE(ImageLock::take(path("base"), LockMode::kCoalescer).ok());
}

INSTANTIATE_TEST_SUITE_P(Formats, LiveChainTest, testing::Values("vhd", "qcow2"),
                         [](const auto& subject) { return std::string(subject.param); });

}  // namespace
}  // namespace vbdkit
