// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Parents are pulled into the leaf of a running disk, under a guest that writes all the time.
#include <sys/resource.h>

#include <csignal>

#include "backend/jobs/job_test_base.h"
#include "drivers/chain/image_file.h"
#include "drivers/jobs/coalesce_journal.h"

namespace vbdkit::jobs {
namespace {

constexpr uint64_t kMiB = 1 << 20;

class StreamJobTest : public JobTest, public testing::WithParamInterface<const char*> {
 protected:
  std::string format() const { return GetParam(); }
  std::string file(const std::string& name) const { return name + "." + format(); }
  std::string spec(const std::string& name) const { return format() + ":" + path(file(name)); }

  // What is beneath of the base shows, hidden by data and by zeroes of the middle one.
  void make_chain() {
    create(format(), file("base"));
    open(spec("base"));
    for (uint64_t at = 0; at < kSize; at += 3 * kMiB) fill(at, 2 * kMiB, 0x11);
    close();
    create(format(), file("middle"), file("base"));
    open(spec("middle"));
    for (uint64_t at = kMiB; at < kSize; at += 4 * kMiB) {
      fill(at, kMiB / 2, 0x22);
      request(drivers::Op::kWriteZeroes, at - kMiB / 4, kMiB / 4, nullptr);
    }
    close();
    create(format(), file("leaf"), file("middle"));
  }
  std::string stream(const std::string& base = {}, uint64_t speed = 0) const {
    return R"({"device":"disk","job-id":"s")" +
           (base.empty() ? "" : R"(,"base":")" + path(file(base)) + "\"") +
           (speed == 0 ? "" : R"(,"speed":)" + std::to_string(speed)) + "}";
  }
  void expect_completed() {
    const auto completed = event("BLOCK_JOB_COMPLETED");
    EXPECT_EQ("stream", completed.member("type").string());
    EXPECT_TRUE(completed.member("error").is_null()) << completed.dump();
  }
  size_t images_in_use() {
    size_t count = 0;
    on_disk([&] { count = graph_->chain()->chain().paths.size(); });
    return count;
  }
  std::vector<std::string> recorded_chain(const std::string& name) const {
    return drivers::inspect_chain(path(file(name)), format()).paths;
  }
  // Nobody has it open: another may have it alone.
  bool is_free(const std::string& name) const {
    return drivers::ImageLock::take(path(file(name)), drivers::LockMode::kWriter).ok();
  }
  void remove_parents() {
    for (const char* name : {"middle", "base"}) std::filesystem::remove(path(file(name)));
  }
};

TEST_P(StreamJobTest, ALeafUnderLoadStandsAloneInTheEnd) {
  make_chain();
  open(spec("leaf"));
  start_guest(31);
  let_guest_write(300);
  command("block-stream", stream());
  expect_completed();
  EXPECT_EQ("running waiting pending ", statuses_);
  EXPECT_EQ(1u, images_in_use());
  EXPECT_TRUE(is_free("middle"));
  EXPECT_TRUE(is_free("base"));
  remove_parents();
  let_guest_write(300);
  stop_guest();
  const std::vector<uint8_t> model = guest_->model();
  close();
  EXPECT_EQ(1u, recorded_chain("leaf").size());
  check(format(), file("leaf"));
  EXPECT_TRUE(image_content(format(), file("leaf")) == model);
  // It is an image like any other: it is opened for writing again.
  open(spec("leaf"));
  fill(5 * kMiB, kMiB, 0x55);
  EXPECT_EQ(0x55, read_all()[5 * kMiB]);
  close();
  check(format(), file("leaf"));
}

TEST_P(StreamJobTest, OnlyWhatLiesAboveTheBaseIsPulledIn) {
  make_chain();
  open(spec("leaf"));
  const std::vector<uint8_t> before = read_all();
  close();
  open(spec("leaf"));
  start_guest(32);
  command("block-stream", stream("base"));
  expect_completed();
  EXPECT_EQ(2u, images_in_use());
  EXPECT_TRUE(is_free("middle"));
  EXPECT_FALSE(is_free("base"));
  let_guest_write(100);
  stop_guest();
  const std::vector<uint8_t> model = guest_->model();
  close();
  std::filesystem::remove(path(file("middle")));
  EXPECT_EQ((std::vector{path(file("leaf")), path(file("base"))}), recorded_chain("leaf"));
  check(format(), file("leaf"));
  open(spec("leaf"));
  EXPECT_TRUE(read_all() == model);
  close();
}

// Without a guest: the leaf has what the middle one had, and nothing of the base.
TEST_P(StreamJobTest, WhatTheBaseHoldsStaysThere) {
  make_chain();
  open(spec("leaf"));
  command("block-stream", stream("base"));
  expect_completed();
  drivers::StatusRequest status;
  status.offset = 0;
  status.length = kSize;
  status.max_extents = SIZE_MAX;
  std::promise<int> answered;
  status.done = [&](int error) { answered.set_value(error); };
  on_disk([&] { graph_->top().block_status(status); });
  ASSERT_EQ(0, answered.get_future().get());
  uint64_t own = 0;
  uint64_t seen = 0;
  for (const drivers::Extent& extent : status.extents) {
    seen += extent.length;
    if (extent.own) own += extent.length;
  }
  EXPECT_EQ(kSize, seen);
  // Six times half a MiB of data and a quarter of zeroes.
  EXPECT_EQ(6 * (kMiB / 2 + kMiB / 4), own);
}

TEST_P(StreamJobTest, CancelledItHasLostNothingAndTheNextOneGoesOn) {
  make_chain();
  open(spec("leaf"));
  start_guest(33);
  command("block-stream", stream({}, 1));
  let_guest_write(100);
  EXPECT_NE(std::string::npos,
            refusal("block-stream", R"({"device":"disk","job-id":"t"})")
                .find("Job 's' (stream) runs on this disk; wait for its end or cancel it"));
  command("block-job-cancel", R"({"device":"s"})");
  event("BLOCK_JOB_CANCELLED");
  EXPECT_EQ(3u, images_in_use());
  EXPECT_EQ(3u, recorded_chain("leaf").size());
  command("block-stream", stream({}, 1));
  command("block-job-set-speed", R"({"device":"s","speed":0})");
  expect_completed();
  stop_guest();
  const std::vector<uint8_t> model = guest_->model();
  remove_parents();
  EXPECT_TRUE(read_all() == model);
  close();
  EXPECT_TRUE(image_content(format(), file("leaf")) == model);
}

// Files of this process may not grow any more, as on a disk that is full.
class FullDisk {
 public:
  explicit FullDisk(uint64_t most) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    EXPECT_EQ(0, ::getrlimit(RLIMIT_FSIZE, &before_));
    const rlimit limit{most, before_.rlim_max};
    EXPECT_EQ(0, ::setrlimit(RLIMIT_FSIZE, &limit));
  }
  ~FullDisk() {
    EXPECT_EQ(0, ::setrlimit(RLIMIT_FSIZE, &before_));
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*const handler_)(int);
  rlimit before_{};
};

TEST_P(StreamJobTest, AFullDiskEndsTheJobAndTheNextOneGoesOn) {
  make_chain();
  open(spec("leaf"));
  const std::vector<uint8_t> before = read_all();
  {
    const FullDisk full(std::filesystem::file_size(path(file("leaf"))) + 4 * kMiB);
    command("block-stream", stream());
    const auto completed = event("BLOCK_JOB_COMPLETED");
    EXPECT_EQ("stream", completed.member("type").string());
    EXPECT_FALSE(completed.member("error").is_null()) << completed.dump();
    EXPECT_TRUE(read_all() == before);
    EXPECT_EQ(3u, images_in_use());
  }
  EXPECT_EQ(3u, recorded_chain("leaf").size());
  command("block-stream", stream());
  expect_completed();
  remove_parents();
  EXPECT_TRUE(read_all() == before);
  close();
  check(format(), file("leaf"));
  EXPECT_TRUE(image_content(format(), file("leaf")) == before);
}

// What is beneath a leaf that has grown ends before it does.
TEST_P(StreamJobTest, AGrownLeafOverAShorterParent) {
  make_chain();
  open(spec("leaf"));
  on_disk([&] { EXPECT_TRUE(graph_->top().resize(Bytes{kSize + 3 * kMiB})); });
  const std::vector<uint8_t> before = read_all();
  command("block-stream", stream());
  expect_completed();
  EXPECT_TRUE(read_all() == before);
  std::vector<uint8_t> rest(3 * kMiB, 0xff);
  request(drivers::Op::kRead, kSize, rest.size(), rest.data());
  EXPECT_EQ(std::vector<uint8_t>(rest.size()), rest);
  close();
  check(format(), file("leaf"));
}

TEST_P(StreamJobTest, ADiskWithoutParentsIsDoneAtOnce) {
  create(format(), file("leaf"));
  open(spec("leaf"));
  command("block-stream", stream());
  expect_completed();
  EXPECT_NE(std::string::npos, refusal("block-stream", stream("nowhere")).find("is not beneath"));
}

// The job is asked for while a snapshot is on its way, and begins behind it: the chain is longer
// then by an image that it knows nothing of.
TEST_P(StreamJobTest, WhatASnapshotPutInBetweenIsNotLost) {
  make_chain();
  open(spec("leaf"));
  fill(2 * kMiB, kMiB, 0x33);
  const std::vector<uint8_t> before = read_all();
  const std::string copy = R"({"device":"disk","sync":"top","format":")" + format() +
                           R"(","target":")" + path(file("copy"));
  const std::pair<std::string, std::string> jobs[] = {{"block-stream", stream("base")},
                                                      {"drive-mirror", copy + "1\"}"},
                                                      {"drive-backup", copy + "2\"}"}};
  for (const auto& [name, arguments] : jobs) {
    SCOPED_TRACE(name);
    LiveGraph::Done ready;
    std::promise<bool> taken;
    const std::string former = file("former-" + name);
    on_disk([&] {
      graph_->change({
          .prepare = [&](LiveGraph::Done done) { ready = std::move(done); },
          .apply = [&](drivers::NodePtr&) -> Result<void> {
            std::filesystem::rename(path(file("leaf")), path(former));
            create(format(), file("leaf"), former);
            return put_in_front(*graph_->chain(),
                                {{format(), path(file("leaf")), {}}, path(former)},
                                {*reactor_, log_, {}});
          },
          .done = [&](Result<void> result) { taken.set_value(result.ok()); },
      });
    });
    command(name, arguments);
    on_disk([&] { ready({}); });
    EXPECT_TRUE(taken.get_future().get());
    const auto completed = event("BLOCK_JOB_COMPLETED");
    EXPECT_EQ("the disk's chain has just been changed",
              completed.member("error").string().value_or("no error"));
    EXPECT_TRUE(read_all() == before);
  }
  EXPECT_EQ(6u, images_in_use());
  command("block-stream", stream("base"));
  expect_completed();
  EXPECT_EQ(2u, images_in_use());
  EXPECT_TRUE(read_all() == before);
}

// The base would have a part of the middle one, and the disk would stand on it directly.
TEST_P(StreamJobTest, AnImageThatIsBeingMergedIsNotPassedOver) {
  using drivers::CoalesceJournal;
  const std::string reason = "is being merged into " + path(file("base"));
  make_chain();
  open(spec("leaf"));
  const std::vector<uint8_t> before = read_all();
  const std::string journal = CoalesceJournal::path_for(path(file("middle")));
  // One that was interrupted.
  ASSERT_TRUE(CoalesceJournal{}.save(journal));
  EXPECT_NE(std::string::npos, refusal("block-stream", stream("base")).find(reason));
  std::filesystem::remove(journal);
  // One that comes while the job runs.
  command("block-stream", stream("base", 1));
  {
    auto lock = drivers::ImageLock::take(path(file("middle")), drivers::LockMode::kReader);
    ASSERT_TRUE(lock);
    ASSERT_TRUE(lock->mark_merging());
    command("block-job-set-speed", R"({"device":"s","speed":0})");
    const auto completed = event("BLOCK_JOB_COMPLETED");
    EXPECT_NE(std::string::npos,
              completed.member("error").string().value_or("no error").find(reason));
    EXPECT_EQ(3u, images_in_use());
    EXPECT_EQ(3u, recorded_chain("leaf").size());
  }
  ASSERT_TRUE(CoalesceJournal{}.save(journal));
  command("block-stream", stream());  // what it is merged into goes, too
  expect_completed();
  EXPECT_EQ(1u, images_in_use());
  EXPECT_TRUE(read_all() == before);
}

// A power cut at any of the writes that take the parent out of the header: all before it are
// durable, and of its own sectors any.
TEST_P(StreamJobTest, APowerCutLeavesTheParentOrNone) {
  using drivers::ImageFile;
  make_chain();
  open(spec("leaf"));
  const std::vector<uint8_t> content = read_all();
  for (uint64_t at = 0; at < kSize; at += kMiB) {
    std::vector<uint8_t> copy(content.begin() + static_cast<ptrdiff_t>(at),
                              content.begin() + static_cast<ptrdiff_t>(at + kMiB));
    request(drivers::Op::kWrite, at, kMiB, copy.data());
  }
  close();
  const auto patches = drivers::find_image_format(format())->plan_alone(path(file("leaf")));
  ASSERT_TRUE(patches) << patches.error().message();
  const std::string whole = path("whole");
  std::filesystem::copy_file(path(file("leaf")), whole);
  unsigned with = 0;
  unsigned without = 0;
  const auto look = [&] {
    const size_t images = recorded_chain("leaf").size();
    ++(images == 1 ? without : with);
    EXPECT_TRUE(images == 1 || images == 3) << images;
    open(spec("leaf"));
    EXPECT_TRUE(read_all() == content);
    close();
    check(format(), file("leaf"));
  };
  for (size_t done = 0; done < patches->size(); ++done) {
    const drivers::FilePatch& cut = (*patches)[done];
    const size_t sectors = (cut.bytes.size() + kSectorSize - 1) / kSectorSize;
    for (uint64_t written = 0; written < uint64_t{1} << sectors; ++written) {
      SCOPED_TRACE("write " + std::to_string(done) + ", sectors " + std::to_string(written));
      std::filesystem::copy_file(whole, path(file("leaf")),
                                 std::filesystem::copy_options::overwrite_existing);
      auto image = ImageFile::open(path(file("leaf")), ImageFile::Mode::kWrite);
      ASSERT_TRUE(image);
      ASSERT_TRUE(drivers::apply_patches(*image, std::span(*patches).first(done)));
      for (size_t i = 0; i < sectors; ++i) {
        if ((written >> i & 1) == 0) continue;
        const size_t at = i * kSectorSize;
        const size_t length = std::min<size_t>(kSectorSize, cut.bytes.size() - at);
        ASSERT_TRUE(image->write(cut.offset + at, std::span(cut.bytes).subspan(at, length)));
      }
      look();
    }
  }
  EXPECT_GT(with, 0u);
  EXPECT_GT(without, 0u);
}

INSTANTIATE_TEST_SUITE_P(Formats, StreamJobTest, testing::Values("qcow2", "vhd"),
                         [](const testing::TestParamInfo<const char*>& test) {
                           return std::string(test.param);
                         });

}  // namespace
}  // namespace vbdkit::jobs
