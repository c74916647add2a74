// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/runtime_dir.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>

namespace vbdkit {
namespace {

class RuntimeDirTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/vbdkit-runtime-XXXXXX";
    base_ = ::mkdtemp(name);
    path_ = base_ + "/one";
  }
  void TearDown() override { std::filesystem::remove_all(base_); }
  std::string base_, path_;
};

TEST_F(RuntimeDirTest, IsAliveWhileClaimedAndGoneAfterwards) {
  EXPECT_FALSE(RuntimeDir::alive(path_));
  {
    auto dir = RuntimeDir::claim(path_);
    ASSERT_TRUE(dir);
    EXPECT_TRUE(RuntimeDir::alive(path_));
    pid_t pid = 0;
    std::ifstream(path_ + "/pid") >> pid;
    EXPECT_EQ(pid, ::getpid());
    EXPECT_EQ(std::filesystem::status(path_).permissions(), std::filesystem::perms::owner_all);
  }
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(RuntimeDirTest, BelongsToOneAtATime) {
  auto first = RuntimeDir::claim(path_);
  ASSERT_TRUE(first);
  const auto second = RuntimeDir::claim(path_);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().kind(), ErrorKind::kBusy);
  EXPECT_TRUE(RuntimeDir::alive(path_));
}

TEST_F(RuntimeDirTest, WhatACrashLeftIsDeadAndCanBeCleaned) {
  std::filesystem::create_directory(path_);
  for (const char* name : {"pid", "record.json", "qmp.sock", "nbd.sock"})
    std::ofstream(path_ + "/" + name) << 1;
  EXPECT_FALSE(RuntimeDir::alive(path_));
  RuntimeDir::clean(path_);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

// An instance that has become another user cannot come here by the path any more.
TEST_F(RuntimeDirTest, RecordIsWrittenWhereverTheDirectoryIs) {
  auto dir = RuntimeDir::claim(path_);
  ASSERT_TRUE(dir);
  const std::string moved = base_ + "/moved";
  std::filesystem::rename(path_, moved);
  EXPECT_TRUE(dir->write_record("{}"));
  EXPECT_TRUE(std::filesystem::exists(moved + "/record.json"));
}

TEST_F(RuntimeDirTest, RecordIsReplacedAsAWhole) {
  auto dir = RuntimeDir::claim(path_);
  ASSERT_TRUE(dir);
  ASSERT_TRUE(dir->write_record("{\"long\":\"first\"}"));
  ASSERT_TRUE(dir->write_record("{}"));
  std::string text;
  std::getline(std::ifstream(path_ + "/record.json"), text);
  EXPECT_EQ(text, "{}");
}

}  // namespace
}  // namespace vbdkit
