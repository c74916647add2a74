// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a group's members find when their owners are gone, file by file; and records that were not
// made by us. What is killed where is tests/tools/group.sh's.
#include "drivers/group_snapshot.h"

#include <gtest/gtest.h>

#include <fstream>
#include <optional>

#include "drivers/image_format.h"
#include "drivers/journal_text.h"
#include "drivers/vhd/test_image.h"

namespace vbdkit::drivers {
namespace {

class GroupSnapshotTest : public testing::TestWithParam<const char*> {
 protected:
  GroupSnapshotTest() {
    for (const char* name : {"a", "b"}) {
      CreateRequest request;
      request.path = path(name);
      request.size = Bytes{1 << 20};
      EXPECT_TRUE(find_image_format(GetParam())->create(request).ok());
    }
  }
  std::string path(const std::string& name) const { return (directory_ / name) + "." + GetParam(); }
  NodeSpec spec(const std::string& name) const { return {GetParam(), path(name), {}}; }
  SnapshotGroup begin() {
    auto group = SnapshotGroup::begin({path("a"), path("b")});
    EXPECT_TRUE(group.ok()) << group.error().message();
    return std::move(group).value();
  }
  GroupMember member(const std::string& name, const SnapshotGroup& group) {
    auto made = GroupMember::prepare(spec(name), path(name + "-then"), {}, group.journal());
    EXPECT_TRUE(made.ok()) << made.error().message();
    return std::move(made).value();
  }
  bool is_there(const std::string& name) const { return std::filesystem::exists(path(name)); }
  std::optional<std::string> parent_of(const std::string& name) const {
    const auto facts = find_image_format(GetParam())->inspect(path(name));
    EXPECT_TRUE(facts.ok());
    if (!facts->parent) return std::nullopt;
    return std::filesystem::path(facts->parent->path).stem().string();
  }
  // Only images are left, and so many.
  void expect_files(size_t count) const {
    size_t found = 0;
    for (const auto& file : std::filesystem::directory_iterator(directory_.path())) {
      EXPECT_EQ(file.path().extension(), std::string(".") + GetParam()) << file.path();
      ++found;
    }
    EXPECT_EQ(count, found);
  }

  vhd::TestDirectory directory_;
};

TEST_P(GroupSnapshotTest, WhatWasDecidedIsKeptByWhoeverComesNext) {
  {
    SnapshotGroup group = begin();
    member("a", group);
    member("b", group);
    ASSERT_TRUE(group.decide().ok());
    ASSERT_TRUE(group.end().ok());
  }
  const auto first = end_interrupted_group(path("a"));
  ASSERT_TRUE(first.ok()) << first.error().message();
  EXPECT_EQ("a-then", parent_of("a"));
  ASSERT_TRUE(end_interrupted_group(path("b")).ok());
  EXPECT_EQ("b-then", parent_of("b"));
  expect_files(4);
}

TEST_P(GroupSnapshotTest, WhatWasNotDecidedIsUndoneAndCannotBeDecidedLater) {
  SnapshotGroup group = begin();
  member("a", group);
  member("b", group);
  EXPECT_FALSE(group_abandoned(group.journal()));
  ASSERT_TRUE(end_interrupted_group(path("a")).ok());
  EXPECT_TRUE(group_abandoned(group.journal()));
  const auto decided = group.decide();
  ASSERT_FALSE(decided.ok());
  EXPECT_EQ(ErrorKind::kTimedOut, decided.error().kind());
  // Whoever locks it to write comes to that first.
  ASSERT_TRUE(ImageLock::take(path("b"), LockMode::kWriter).ok());
  EXPECT_EQ(std::nullopt, parent_of("a"));
  EXPECT_EQ(std::nullopt, parent_of("b"));
  expect_files(2);
}

TEST_P(GroupSnapshotTest, AMemberThatLivesIsLeftAlone) {
  SnapshotGroup group = begin();
  const auto lock = ImageLock::take(path("a"), LockMode::kWriter);
  ASSERT_TRUE(lock.ok());
  GroupMember a = member("a", group);
  EXPECT_EQ(ErrorKind::kBusy, end_interrupted_group(path("a")).error().kind());
  EXPECT_EQ(ErrorKind::kBusy, end_abandoned_group(group.journal()).error().kind());
  ASSERT_TRUE(group.decide().ok());
  ASSERT_TRUE(a.keep().ok());
  expect_files(3);
}

TEST_P(GroupSnapshotTest, AJournalWithoutAnOwnerIsEndedForAll) {
  std::string journal;
  {
    SnapshotGroup group = begin();
    journal = group.journal();
    member("a", group);
    member("b", group);
    std::filesystem::copy_file(journal, journal + ".copy");
  }
  EXPECT_FALSE(std::filesystem::exists(journal));
  std::filesystem::rename(journal + ".copy", journal);
  const auto ended = end_abandoned_group(journal);
  ASSERT_TRUE(ended.ok()) << ended.error().message();
  expect_files(2);
}

TEST_P(GroupSnapshotTest, ALeafThatSomebodyHasWrittenStays) {
  {
    const SnapshotGroup group = begin();
    member("a", group);
  }
  std::ofstream(path("a"), std::ios::app) << "more";
  ASSERT_TRUE(end_interrupted_group(path("a")).ok());
  EXPECT_TRUE(is_there("a-then"));
  expect_files(3);
}

TEST_P(GroupSnapshotTest, ARecordThatNamesOtherFilesIsRefused) {
  const auto record = [&](const std::string& journal, const std::string& name) {
    return "vbdkit-member 1\njournal " + to_hex(journal) + "\nname " + to_hex(name) +
           "\nformer 1\nleaf 2 3\n";
  };
  const std::string file = path("a") + std::string(kMemberRecord);
  for (const std::string& text :
       {record("x.vbdkit-group", "../other"), record("/etc/passwd", "b"), std::string("rubbish"),
        record("x.vbdkit-group", "") + "more\n"}) {
    std::ofstream(file, std::ios::trunc) << text;
    const auto ended = end_interrupted_group(path("a"));
    ASSERT_FALSE(ended.ok()) << text;
    EXPECT_EQ(ErrorKind::kCorrupt, ended.error().kind());
    EXPECT_TRUE(is_there("a"));
  }
  // Of a group that nobody knows of, and files that are others: nothing to be done.
  std::ofstream(file, std::ios::trunc) << record("x.vbdkit-group", "b." + std::string(GetParam()));
  ASSERT_TRUE(end_interrupted_group(path("a")).ok());
  expect_files(2);
}

INSTANTIATE_TEST_SUITE_P(Formats, GroupSnapshotTest, testing::Values("vhd", "qcow2"),
                         [](const auto& subject) { return std::string(subject.param); });

}  // namespace
}  // namespace vbdkit::drivers
