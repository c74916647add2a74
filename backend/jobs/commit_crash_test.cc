// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Power cuts while a guest's leaf is merged into its parent: both files and their names are
// recorded in one order, from before the job to after its end. After each cut whatever the image's
// name leads to must hold what the guest had flushed, and no file may have more wrong than leaks.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "backend/jobs/commit_job.h"
#include "drivers/crash_files.h"
#include "drivers/crash_replay.h"
#include "drivers/image_format.h"
#include "drivers/registry.h"

namespace vbdkit::jobs {
namespace {

using drivers::CrashFiles;
using drivers::Op;
using drivers::WriteOracle;

constexpr uint64_t kDisk = 2 << 20;  // bytes

// Writes several things at a time, each slot to a part of the disk of its own, and tells the
// oracle.
class RecordedGuest {
 public:
  RecordedGuest(RequestSink& sink, const CrashFiles& files, WriteOracle& oracle, uint64_t seed)
      : sink_(sink), files_(files), oracle_(oracle), random_(seed) {
    for (size_t i = 0; i < slots_.size(); ++i) {
      slots_[i].guest = this;
      slots_[i].start = kDisk / slots_.size() * i;
      slots_[i].memory.resize(kMost);
    }
  }

  // So many more requests; then it waits, so that no slow machine makes a longer record.
  void go(uint64_t requests) {
    left_ += requests;
    for (Slot& slot : slots_)
      if (!std::exchange(slot.busy, true)) next(slot);
  }
  // `then` is called once, when so many more have been completed.
  void after(uint64_t requests, std::function<void()> then) {
    due_ = completed_ + requests;
    then_ = std::move(then);
  }
  // `idle`: nothing is in flight any more, and all is flushed.
  void stop(std::function<void()> idle) {
    idle_ = std::move(idle);
    if (in_flight_ == 0) flush();
  }

 private:
  static constexpr uint64_t kMost = 80 << 10;  // bytes of one request
  struct Slot : drivers::Request {
    RecordedGuest* guest = nullptr;
    bool busy = false;
    uint64_t start = 0;
    std::vector<std::byte> memory;
    iovec vector{};
    uint64_t tag = 0;
    uint64_t covers = 0;  // of a flush
  };

  void next(Slot& slot) {
    if (left_ == 0 || idle_) {
      slot.busy = false;
      return;
    }
    --left_;
    constexpr Op kOps[] = {Op::kWrite, Op::kWrite, Op::kWrite, Op::kWriteZeroes, Op::kFlush};
    slot.op = kOps[random_() % std::size(kOps)];
    const uint64_t part = kDisk / slots_.size() / kSectorSize;
    const uint64_t most = random_() % 8 == 0 ? kMost / kSectorSize : 16;
    const uint64_t count = 1 + random_() % most;
    slot.flags = 0;
    slot.offset = slot.start + random_() % (part - count) * kSectorSize;
    slot.length = count * kSectorSize;
    slot.iov = nullptr;
    slot.iov_count = 0;
    if (slot.op != Op::kFlush) {
      slot.tag =
          oracle_.submitted(slot.offset, slot.length, slot.op == Op::kWriteZeroes, files_.events());
      slot.flags = slot.op == Op::kWriteZeroes ? drivers::kMayUnmap
                   : random_() % 16 == 0       ? drivers::kFua
                                               : uint8_t{0};
    }
    if (slot.op == Op::kWrite) {
      const auto data = std::span(slot.memory).first(slot.length);
      WriteOracle::fill(slot.tag, slot.offset, data);
      slot.vector = {data.data(), data.size()};
      slot.iov = &slot.vector;
      slot.iov_count = 1;
    }
    submit(slot);
  }

  void submit(Slot& slot) {
    if (slot.op == Op::kFlush) {
      slot.offset = slot.length = 0;
      slot.covers = oracle_.flush_submitted();
    }
    slot.done = [](drivers::Request& request, int error) {
      auto& done = static_cast<Slot&>(request);
      done.guest->ended(done, error);
    };
    ++in_flight_;
    sink_.submit(slot);
  }

  void flush() {
    flushing_ = true;
    slots_[0].op = Op::kFlush;
    slots_[0].flags = 0;
    slots_[0].iov_count = 0;
    submit(slots_[0]);
  }

  void ended(Slot& slot, int error) {
    EXPECT_EQ(0, error);
    --in_flight_;
    if (slot.op == Op::kFlush)
      oracle_.flushed(slot.covers, files_.events());
    else if (slot.flags & drivers::kFua)
      oracle_.completed_durably(slot.tag, files_.events());
    else
      oracle_.completed(slot.tag);
    if (flushing_) return idle_();
    if (++completed_ == due_) std::exchange(then_, nullptr)();
    if (idle_ && in_flight_ == 0 && !flushing_) return flush();
    if (!flushing_) next(slot);
  }

  RequestSink& sink_;
  const CrashFiles& files_;
  WriteOracle& oracle_;
  std::mt19937_64 random_;
  std::array<Slot, 4> slots_;
  std::function<void()> then_;
  std::function<void()> idle_;
  uint64_t left_ = 0;
  uint64_t due_ = 0;
  uint64_t completed_ = 0;
  unsigned in_flight_ = 0;
  bool flushing_ = false;
};

struct Case {
  const char* format;
  std::map<std::string, std::string> options;
};

class CommitCrash : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    reactor_ = std::move(io::Reactor::create({}, log_)).value();
    ASSERT_NE(nullptr, ::mkdtemp(directory_.data()));
    make("base");
    fill("base", 0, kDisk / 2);
    make("middle", "base");
    fill("middle", kDisk / 4, kDisk / 2);
    make("leaf", "middle");
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string path(const std::string& name) const {
    return directory_ + "/" + name + "." + GetParam().format;
  }
  void make(const std::string& name, const std::string& parent = {}) {
    drivers::CreateRequest request{.path = path(name), .size = Bytes{kDisk}};
    request.options = GetParam().options;
    if (!parent.empty()) request.parent = path(parent), request.parent_format = GetParam().format;
    const auto made = drivers::find_image_format(GetParam().format)->create(request);
    ASSERT_TRUE(made) << made.error().message();
  }
  drivers::NodePtr open(io::Reactor& reactor, const std::string& name, bool read_only) {
    const drivers::GraphSpec spec{{drivers::NodeSpec{GetParam().format, path(name), {}}}};
    auto node = drivers::open_graph(spec, {reactor, log_, {.read_only = read_only}});
    EXPECT_TRUE(node) << (node ? "" : node.error().message());
    return node ? std::move(*node) : nullptr;
  }
  // Of a node that nobody else uses.
  void request(drivers::Node& node, Op op, uint64_t offset, std::span<std::byte> memory) {
    struct Waiting : drivers::Request {
      io::Reactor* reactor = nullptr;
      int error = -1;
    } waiting;
    iovec vector{memory.data(), memory.size()};
    waiting.reactor = reactor_.get();
    waiting.op = op;
    waiting.offset = offset;
    waiting.length = memory.size();
    waiting.iov = &vector;
    waiting.iov_count = 1;
    waiting.done = [](drivers::Request& r, int error) {
      static_cast<Waiting&>(r).error = error;
      static_cast<Waiting&>(r).reactor->stop();
    };
    node.submit(waiting);
    ASSERT_TRUE(reactor_->run());
    ASSERT_EQ(0, waiting.error);
  }
  void fill(const std::string& name, uint64_t offset, uint64_t length) {
    const auto node = open(*reactor_, name, false);
    ASSERT_NE(nullptr, node);
    std::vector<std::byte> data(length);
    WriteOracle::fill(++fills_ << 20, offset, data);
    request(*node, Op::kWrite, offset, data);
    request(*node, Op::kFlush, 0, {});
  }
  void read(const std::string& name, std::vector<std::byte>& disk) {
    const auto node = open(*reactor_, name, true);
    ASSERT_NE(nullptr, node);
    disk.resize(kDisk);
    request(*node, Op::kRead, 0, disk);
  }
  void merge_under_load(uint64_t seed);
  void look(size_t cut, CrashFiles::Loss loss);
  void go_on();

  Logger log_{"test", LogLevel::kWarning};
  std::string directory_ = "/dev/shm/vbdkit-commit-XXXXXX";
  std::unique_ptr<io::Reactor> reactor_;
  std::mt19937_64 random_;
  std::unique_ptr<CrashFiles> files_;
  std::optional<WriteOracle> oracle_;
  uint64_t fills_ = 0;
};

void CommitCrash::merge_under_load(uint64_t seed) {
  random_.seed(seed);
  std::vector<std::byte> disk;
  ASSERT_NO_FATAL_FAILURE(read("leaf", disk));
  oracle_.emplace(std::move(disk));
  files_ = std::move(CrashFiles::record(*reactor_, directory_, seed)).value();
  {
    LiveGraph graph(*files_, open(*files_, "leaf", false));
    RecordedGuest guest(graph.scheduler(), *files_, *oracle_, seed);
    std::unique_ptr<BlockJob> job;
    // It writes in each of the job's stages: with the filter, when all is copied, and afterwards.
    graph.on_changed([&] { guest.go(40); });
    const JobContext context{*files_, log_, graph, [&](std::string_view event, std::string_view) {
                               if (event != "BLOCK_JOB_READY") return;
                               guest.go(40);
                               guest.after(10, [&] { EXPECT_TRUE(job->complete()); });
                             }};
    guest.after(20, [&] {
      auto made = CommitJob::create(context, {.id = "merge"}, path("middle"));
      ASSERT_TRUE(made) << made.error().message();
      job = std::move(*made);
      job->start([&] { guest.stop([&] { graph.close([&] { reactor_->stop(); }); }); });
    });
    guest.go(30);
    ASSERT_TRUE(reactor_->run());
    ASSERT_NE(nullptr, job);
    ASSERT_FALSE(job->error()) << job->error()->message();
    job.reset();
  }
  files_->end();
}

// What the next start finds.
void CommitCrash::look(size_t cut, CrashFiles::Loss loss) {
  SCOPED_TRACE("cut at event " + std::to_string(cut) + " of " + std::to_string(files_->events()));
  const auto put = files_->put_after_cut(cut, loss, random_);
  ASSERT_TRUE(put) << put.error().message();
  ASSERT_TRUE(std::filesystem::exists(path("leaf")));
  for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
    const auto checked = drivers::find_image_format(GetParam().format)->check(entry.path(), false);
    ASSERT_TRUE(checked) << checked.error().message();
    ASSERT_EQ(0u, checked->errors) << entry.path() << testing::PrintToString(checked->messages);
  }
  std::vector<std::byte> disk;
  ASSERT_NO_FATAL_FAILURE(read("leaf", disk));
  ASSERT_EQ("", oracle_->check(cut, disk));
}

// The guest is started again, and its first writes change nothing else.
void CommitCrash::go_on() {
  std::vector<std::byte> before;
  ASSERT_NO_FATAL_FAILURE(read("leaf", before));
  const uint64_t length = 128 << 10;
  const uint64_t offset = random_() % (kDisk - length) / kSectorSize * kSectorSize;
  ASSERT_NO_FATAL_FAILURE(fill("leaf", offset, length));
  WriteOracle::fill(fills_ << 20, offset, std::span(before).subspan(offset, length));
  const auto checked = drivers::find_image_format(GetParam().format)->check(path("leaf"), false);
  ASSERT_TRUE(checked && checked->errors == 0);
  std::vector<std::byte> after;
  ASSERT_NO_FATAL_FAILURE(read("leaf", after));
  ASSERT_TRUE(before == after);
}

// The build with sanitizers looks for what a cut does to our code.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStep = 8;
#else
constexpr size_t kStep = 1;
#endif

TEST_P(CommitCrash, WhateverTheNameLeadsToHoldsWhatWasFlushed) {
  const char* const seed = getenv("VBDKIT_TEST_SEED");
  ASSERT_NO_FATAL_FAILURE(merge_under_load(seed == nullptr ? 1 : strtoull(seed, nullptr, 10)));
  const auto names = files_->name_events();
  ASSERT_EQ(3u, names.size()) << "a second name, the exchange, and the second name goes";
  ASSERT_GT(files_->events(), 200u);
  for (size_t cut = 0; cut <= files_->events(); cut += kStep) {
    ASSERT_NO_FATAL_FAILURE(look(cut, CrashFiles::Loss::kRandom));
    if (cut % 2 == 0) {
      ASSERT_NO_FATAL_FAILURE(look(cut, CrashFiles::Loss::kNothing));
    }
    if (cut % 8 == 0) {
      ASSERT_NO_FATAL_FAILURE(go_on());
    }
  }
  // Names are exchanged within a few events.
  for (size_t cut = names[0]; cut <= names[2] + 2; cut += kStep)
    for (int i = 0; i < 4; ++i) ASSERT_NO_FATAL_FAILURE(look(cut, CrashFiles::Loss::kRandom));
  std::printf("%zu events, names changed at %zu, %zu and %zu\n", files_->events(), names[0],
              names[1], names[2]);
}

INSTANTIATE_TEST_SUITE_P(Formats, CommitCrash,
                         testing::Values(Case{"qcow2", {{"cluster_size", "4K"}}},
                                         Case{"vhd", {{"block_size", "512K"}}}),
                         [](const auto& test) { return std::string(test.param.format); });

}  // namespace
}  // namespace vbdkit::jobs
