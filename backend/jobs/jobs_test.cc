// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Jobs on real images under a guest that writes all the time, steered by a QMP client.
#include "backend/jobs/job_test_base.h"
#include "drivers/chain/live_chain.h"
#include "drivers/loop_device.h"

namespace vbdkit::jobs {
namespace {

struct Move {
  const char* from;
  const char* to;
};

class MirrorJobTest : public JobTest, public testing::WithParamInterface<Move> {};

TEST_P(MirrorJobTest, ARunningDiskMovesToAnotherFormat) {
  const auto [from, to] = GetParam();
  const std::string source = from;
  const std::string target = to;
  create(source, "source");
  create(target, "target");
  open(source + ":" + path("source"));
  for (uint64_t at = 0; at < kSize; at += 4 << 20)
    fill(at, 1 << 20, static_cast<uint8_t>(at >> 22));
  start_guest(11);
  command("blockdev-mirror", R"({"device":"disk","job-id":"move","sync":"full","target":")" +
                                 target + ":" + path("target") + "\"}");
  const auto ready = event("BLOCK_JOB_READY");
  EXPECT_EQ("mirror", ready.member("type").string());
  EXPECT_EQ(ready.member("len").number(), ready.member("offset").number());
  let_guest_write(500);
  EXPECT_EQ(source + ":" + path("source"), graph_spec());
  command("block-job-complete", R"({"device":"move"})");
  const auto completed = event("BLOCK_JOB_COMPLETED");
  EXPECT_TRUE(completed.member("error").is_null()) << completed.dump();
  EXPECT_EQ(target + ":" + path("target"), graph_spec());
  let_guest_write(500);
  stop_guest();
  const std::vector<uint8_t> model = guest_->model();
  EXPECT_EQ("created running ready waiting pending ", "created " + statuses_);
  event("JOB_STATUS_CHANGE");
  close();
  check(target, "target");
  EXPECT_TRUE(image_content(target, "target") == model);
}

INSTANTIATE_TEST_SUITE_P(Formats, MirrorJobTest,
                         testing::Values(Move{"raw", "qcow2"}, Move{"qcow2", "raw"},
                                         Move{"vhd", "qcow2"}, Move{"qcow2", "vhd"}),
                         [](const testing::TestParamInfo<Move>& test) {
                           return std::string(test.param.from) + "To" + test.param.to;
                         });

class CommitJobTest : public JobTest, public testing::WithParamInterface<const char*> {
 protected:
  std::string format() const { return GetParam(); }
  std::string file(const std::string& name) const { return name + "." + format(); }
  void make_chain() {
    create(format(), file("base"));
    open(format() + ":" + path(file("base")));
    for (uint64_t at = 0; at < kSize; at += 3 << 20) fill(at, 1 << 20, 0x11);
    close();
    create(format(), file("middle"), file("base"));
    open(format() + ":" + path(file("middle")));
    for (uint64_t at = 1 << 20; at < kSize; at += 4 << 20) fill(at, 1 << 20, 0x22);
    close();
    create(format(), file("leaf"), file("middle"));
  }
  // Of a chain that is closed; QEMU knows no VHDs that have parents.
  std::vector<uint8_t> chain_content(const std::string& name) {
    if (format() == "qcow2") return image_content(format(), name);
    open(format() + ":" + path(name));
    std::vector<uint8_t> all = read_all();
    close();
    return all;
  }
  std::string commit() const {
    return R"({"device":"disk","job-id":"c","base":")" + path(file("middle")) + "\"}";
  }
};

TEST_P(CommitJobTest, ALeafUnderLoadBecomesItsParentAndKeepsItsName) {
  make_chain();
  open(format() + ":" + path(file("leaf")));
  start_guest(21);
  let_guest_write(300);
  command("block-commit", commit());
  event("BLOCK_JOB_READY");
  let_guest_write(300);
  command("block-job-complete", R"({"device":"c"})");
  const auto completed = event("BLOCK_JOB_COMPLETED");
  EXPECT_TRUE(completed.member("error").is_null()) << completed.dump();
  EXPECT_EQ(format() + ":" + path(file("leaf")), graph_spec());
  EXPECT_FALSE(std::filesystem::exists(path(file("middle"))));
  EXPECT_FALSE(std::filesystem::exists(path(file("leaf") + ".vbdkit-merged")));
  let_guest_write(300);
  stop_guest();
  const std::vector<uint8_t> model = guest_->model();
  close();
  check(format(), file("leaf"));
  check(format(), file("base"));
  EXPECT_TRUE(chain_content(file("leaf")) == model);
  const auto facts = drivers::inspect_chain(path(file("leaf")), format());
  EXPECT_EQ(2u, facts.paths.size());
}

TEST_P(CommitJobTest, WhatAKilledOneLeftIsNoObstacle) {
  for (const bool before_the_rename : {true, false}) {
    make_chain();
    const std::string left = path(file("leaf")) + ".vbdkit-merged";
    if (before_the_rename)
      std::filesystem::create_hard_link(path(file("leaf")), left);
    else
      std::filesystem::copy_file(path(file("leaf")), left);
    open(format() + ":" + path(file("leaf")));
    const std::vector<uint8_t> all = read_all();
    command("block-commit", commit());
    event("BLOCK_JOB_READY");
    command("block-job-complete", R"({"device":"c"})");
    const auto completed = event("BLOCK_JOB_COMPLETED");
    EXPECT_TRUE(completed.member("error").is_null()) << completed.dump();
    EXPECT_FALSE(std::filesystem::exists(left));
    close();
    EXPECT_TRUE(chain_content(file("leaf")) == all);
    EXPECT_FALSE(std::filesystem::exists(path(file("middle"))));
    for (const char* name : {"leaf", "base"}) std::filesystem::remove(path(file(name)));
  }
}

TEST_P(CommitJobTest, AfterASnapshotOnlyWhatTheNewLeafHoldsIsMerged) {
  create(format(), file("leaf"));
  open(format() + ":" + path(file("leaf")));
  fill(0, 8 << 20, 0x11);
  close();
  open(format() + ":" + path(file("leaf")), [this](LiveGraph& graph) {
    std::filesystem::rename(path(file("leaf")), path(file("middle")));
    create(format(), file("leaf"), file("middle"));
    const auto put = drivers::put_in_front(*graph.chain(),
                                           {graph.chain()->options().image, path(file("middle"))},
                                           {*reactor_, log_, {}});
    ASSERT_TRUE(put) << put.error().message();
  });
  fill(1 << 20, 1 << 20, 0x22);
  command("block-commit", commit());
  event("BLOCK_JOB_READY");
  command("block-job-complete", R"({"device":"c"})");
  EXPECT_TRUE(event("BLOCK_JOB_COMPLETED").member("error").is_null());
  const std::vector<uint8_t> all = read_all();
  close();
  EXPECT_TRUE(chain_content(file("leaf")) == all);
  EXPECT_EQ(0x11, all[0]);
  EXPECT_EQ(0x22, all[1 << 20]);
  EXPECT_EQ(1u, drivers::inspect_chain(path(file("leaf")), format()).paths.size());
}

// While the chain reads the parent nothing of it is used again; then it is the disk's alone.
TEST_P(CommitJobTest, SpaceThatIsGivenBackAfterItIsUsedAgain) {
  if (format() != "qcow2") GTEST_SKIP() << "a VHD gives no space back";
  make_chain();
  open(format() + ":" + path(file("leaf")));
  fill(0, 8 << 20, 0x33);
  command("block-commit", commit());
  event("BLOCK_JOB_READY");
  command("block-job-complete", R"({"device":"c"})");
  EXPECT_TRUE(event("BLOCK_JOB_COMPLETED").member("error").is_null());
  request(drivers::Op::kDiscard, 0, 8 << 20, nullptr);
  request(drivers::Op::kFlush, 0, 0, nullptr);
  const uint64_t before = std::filesystem::file_size(path(file("leaf")));
  fill(10 << 20, 3 << 20, 0x44);
  request(drivers::Op::kFlush, 0, 0, nullptr);
  EXPECT_LT(std::filesystem::file_size(path(file("leaf"))), before + (1 << 20));
  close();
  check(format(), file("leaf"));
}

TEST_P(CommitJobTest, CancelledItLeavesTheChainAsItWas) {
  make_chain();
  open(format() + ":" + path(file("leaf")));
  start_guest(22);
  let_guest_write(200);
  command("block-commit", commit());
  event("BLOCK_JOB_READY");
  let_guest_write(200);
  command("job-cancel", R"({"id":"c"})");
  event("BLOCK_JOB_CANCELLED");
  let_guest_write(200);
  // Nobody may write the parent any more.
  EXPECT_FALSE(drivers::ImageLock::take(path(file("middle")), drivers::LockMode::kCoalescer).ok());
  stop_guest();
  const std::vector<uint8_t> model = guest_->model();
  close();
  check(format(), file("leaf"));
  check(format(), file("middle"));
  EXPECT_TRUE(chain_content(file("leaf")) == model);
}

TEST_P(CommitJobTest, WhatOthersStandOnIsNotMerged) {
  make_chain();
  create(format(), file("sibling"), file("middle"));
  open(format() + ":" + path(file("leaf")));
  command("block-commit", commit());
  const auto completed = event("BLOCK_JOB_COMPLETED");
  const std::string why = completed.member("error").string().value_or("");
  EXPECT_NE(std::string::npos, why.find(file("sibling"))) << completed.dump();
  EXPECT_NE(std::string::npos,
            refusal("block-commit", R"({"device":"disk","base":")" + path(file("base")) + "\"}")
                .find("can only be the parent"));
}

INSTANTIATE_TEST_SUITE_P(Formats, CommitJobTest, testing::Values("vhd", "qcow2"),
                         [](const testing::TestParamInfo<const char*>& test) {
                           return std::string(test.param);
                         });

class Jobs : public JobTest {};

TEST_P(CommitJobTest, WhatLiesBeneathTheDisksOwnImageIsLeftToTheCommand) {
  make_chain();
  open(format() + ":" + path(file("leaf")));
  const auto why = [&](const std::string& arguments) {
    return refusal("block-commit", R"({"device":"disk",)" + arguments + "}");
  };
  const auto top = [&](const std::string& name) { return R"("top":")" + path(name) + "\""; };
  EXPECT_NE(std::string::npos,
            why(top(file("middle"))).find("vbdkit coalesce " + format() + ":" + path("middle")));
  EXPECT_NE(std::string::npos, why(top("elsewhere")).find("is not an image of the disk"));
  EXPECT_NE(std::string::npos, why(R"("top-node":"node1")").find("no node names"));
  EXPECT_NE(std::string::npos, why(R"("base-node":"node1")").find("no node names"));
  command("block-commit", R"({"device":"disk",)" + top(file("leaf")) + R"(,"base":")" +
                              path(file("middle")) + "\"}");
  event("BLOCK_JOB_READY");
}

TEST_F(Jobs, MigrateSwitchesByItself) {
  create("raw", "source");
  create("raw", "target");
  open("raw:" + path("source"));
  start_guest(3);
  command("x-vbdkit-migrate", R"({"target":"raw:)" + path("target") + "\"}");
  event("BLOCK_JOB_COMPLETED");
  stop_guest();
  EXPECT_EQ("raw:" + path("target"), graph_spec());
}

TEST_F(Jobs, CancelledWhenReadyTheTargetIsACopyAndTheDiskStays) {
  create("qcow2", "source");
  open("qcow2:" + path("source"));
  fill(1 << 20, 3 << 20, 7);
  command("drive-mirror",
          R"({"device":"disk","sync":"full","format":"raw","target":")" + path("copy") + "\"}");
  event("BLOCK_JOB_READY");
  fill(4 << 20, 1 << 20, 9);
  const std::vector<uint8_t> then = read_all();
  command("block-job-cancel", R"({"device":"disk"})");
  EXPECT_TRUE(event("BLOCK_JOB_COMPLETED").member("error").is_null());
  EXPECT_EQ("qcow2:" + path("source"), graph_spec());
  fill(8 << 20, 1 << 20, 5);
  EXPECT_TRUE(image_content("raw", "copy") == then);
}

// A device is not made: it holds what it held, and is there when a job does not begin.
TEST_F(Jobs, ADeviceThatABackupIsMadeOnGetsZeroesToo) {
  const std::string old = path("device");
  shell("head -c 24M /dev/zero | tr '\\0' x >" + old);
  const auto backing = Fd::open(old, O_RDWR);
  ASSERT_TRUE(backing);
  const auto device = drivers::LoopDevice::create(backing->get(), 512);
  if (!device) GTEST_SKIP() << device.error().message();
  create("raw", "source");
  open("raw:" + path("source"));
  fill(1 << 20, 3 << 20, 7);
  const auto backup = [&](const std::string& target) {
    return R"({"device":"disk","sync":"full","format":"raw","target":")" + target + "\"}";
  };
  shell("truncate -s 25M " + path("large"));
  {
    const auto more = Fd::open(path("large"), O_RDWR);
    const auto larger = drivers::LoopDevice::create(more->get(), 512);
    ASSERT_TRUE(larger);
    EXPECT_NE(std::string::npos,
              refusal("drive-backup", backup(larger->path())).find("keeps its size"));
    EXPECT_TRUE(std::filesystem::exists(larger->path()));
  }
  command("drive-backup", backup(device->path()));
  EXPECT_TRUE(event("BLOCK_JOB_COMPLETED").member("error").is_null());
  const std::vector<uint8_t> all = read_all();
  close();
  std::vector<uint8_t> copy(kSize);
  const auto fd = Fd::open(device->path(), O_RDONLY);
  ASSERT_EQ(static_cast<ssize_t>(kSize), ::pread(fd->get(), copy.data(), kSize, 0));
  EXPECT_TRUE(copy == all);
}

TEST_F(Jobs, ASecondJobIsRefusedByTheNameOfTheFirst) {
  create("raw", "source");
  open("raw:" + path("source"));
  fill(0, 8 << 20, 1);
  command("drive-mirror", R"({"device":"disk","job-id":"first","sync":"full","speed":65536,)"
                          R"("format":"raw","target":")" +
                              path("a") + "\"}");
  const std::string why =
      refusal("drive-mirror",
              R"({"device":"disk","job-id":"second","sync":"full","target":")" + path("b") + "\"}");
  EXPECT_NE(std::string::npos, why.find("'first'")) << why;
  EXPECT_FALSE(std::filesystem::exists(path("b")));
  const auto jobs = command("query-block-jobs");
  ASSERT_EQ(1u, jobs.size());
  EXPECT_EQ("first", jobs.at(0).member("device").string());
  EXPECT_EQ(65536u, jobs.at(0).member("speed").number());
  EXPECT_EQ("running", jobs.at(0).member("status").string());
  command("job-pause", R"({"id":"first"})");
  EXPECT_EQ("paused", command("query-jobs").at(0).member("status").string());
  EXPECT_NE("", refusal("block-job-complete", R"({"device":"first"})"));
  command("block-job-set-speed", R"({"device":"first","speed":0})");
  command("job-resume", R"({"id":"first"})");
  event("BLOCK_JOB_READY");
  command("job-cancel", R"({"id":"first"})");
  event("BLOCK_JOB_CANCELLED");
  event("JOB_STATUS_CHANGE");
  event("JOB_STATUS_CHANGE");
  EXPECT_EQ(0u, command("query-jobs").size());
}

TEST_F(Jobs, AJobThatIsNotDismissedIsThereForWhoAsksLater) {
  create("raw", "source");
  open("raw:" + path("source"));
  start_guest(5);
  shell("truncate -s 24M " + path("target"));
  command("blockdev-mirror", R"({"device":"disk","job-id":"m","sync":"full","auto-dismiss":false,)"
                             R"("target":"raw:)" +
                                 path("target") + "\"}");
  event("BLOCK_JOB_READY");
  command("job-cancel", R"({"id":"m"})");
  event("BLOCK_JOB_CANCELLED");
  event("JOB_STATUS_CHANGE");
  EXPECT_EQ("concluded", command("query-jobs").at(0).member("status").string());
  command("job-dismiss", R"({"id":"m"})");
  EXPECT_EQ(0u, command("query-jobs").size());
  stop_guest();
}

TEST_F(Jobs, BackupKeepsThePointInTimeUnderLoad) {
  create("qcow2", "source");
  open("qcow2:" + path("source"));
  for (uint64_t at = 0; at < kSize; at += 2 << 20)
    fill(at, 1 << 20, static_cast<uint8_t>(1 + (at >> 21)));
  const std::vector<uint8_t> then = read_all();
  // The load begins behind the start of the job, which takes the moment.
  command("drive-backup", R"({"device":"disk","job-id":"b","sync":"full","speed":65536,)"
                          R"("format":"raw","target":")" +
                              path("backup") + "\"}");
  while (command("query-block-jobs").at(0).member("len").number() == 0u) {
  }
  start_guest(9);
  let_guest_write(1000);
  command("block-job-set-speed", R"({"device":"b","speed":0})");
  EXPECT_TRUE(event("BLOCK_JOB_COMPLETED").member("error").is_null());
  stop_guest();
  EXPECT_TRUE(image_content("raw", "backup") == then);
}

TEST_F(Jobs, AnIncrementalBackupBringsTheLastOneUpToDate) {
  create("raw", "source");
  create("raw", "backup");
  open("cbt:name=b,file=" + path("cbt") + "|raw:" + path("source"));
  const std::string full =
      R"({"device":"disk","sync":"full","target":"raw:)" + path("backup") + "\"}";
  const std::string incremental =
      R"({"device":"disk","sync":"incremental","bitmap":"b","target":"raw:)" + path("backup") +
      "\"}";
  fill(0, 4 << 20, 1);
  command("blockdev-backup", full);
  event("BLOCK_JOB_COMPLETED");
  command("block-dirty-bitmap-clear", R"({"node":"disk","name":"b"})");
  fill(6 << 20, 1 << 20, 2);
  command("blockdev-backup", incremental);
  const auto completed = event("BLOCK_JOB_COMPLETED");
  EXPECT_TRUE(completed.member("error").is_null()) << completed.dump();
  EXPECT_EQ(1u << 20, completed.member("len").number()) << "no more than was changed is copied";
  EXPECT_TRUE(image_content("raw", "backup") == read_all());
  fill(0, 64 << 10, 3);
  command("blockdev-backup", incremental);
  EXPECT_EQ(64u << 10, event("BLOCK_JOB_COMPLETED").member("len").number());
  EXPECT_TRUE(image_content("raw", "backup") == read_all());
}

TEST_F(Jobs, WhatDoesNotFitIsRefusedBeforeAnythingIsDone) {
  create("raw", "source");
  open("raw:" + path("source"));
  shell("truncate -s 48M " + path("large"));
  EXPECT_NE(std::string::npos,
            refusal("blockdev-mirror",
                    R"({"device":"disk","sync":"full","target":"raw:)" + path("large") + "\"}")
                .find("keeps its size"));
  EXPECT_NE("", refusal("blockdev-mirror",
                        R"({"device":"disk","sync":"full","target":"raw:)" + path("none") + "\"}"));
  EXPECT_NE("", refusal("blockdev-mirror", R"({"device":"other","sync":"full","target":"x"})"));
  EXPECT_NE("", refusal("blockdev-backup",
                        R"({"device":"disk","sync":"incremental","bitmap":"no","target":"raw:)" +
                            path("large") + "\"}"));
  EXPECT_EQ(0u, command("query-jobs").size());
}

TEST_F(Jobs, AnInstanceThatEndsCancelsItsJobs) {
  create("raw", "source");
  open("raw:" + path("source"));
  fill(0, 8 << 20, 1);
  command("drive-mirror", R"({"device":"disk","sync":"full","speed":65536,"format":"raw",)"
                          R"("target":")" +
                              path("a") + "\"}");
  close();
}

}  // namespace
}  // namespace vbdkit::jobs
