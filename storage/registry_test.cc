// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/registry.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>

#include "backend/runtime_dir.h"
#include "base/process.h"

namespace vbdkit::storage {
namespace {

namespace fs = std::filesystem;

class RegistryTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/vbdkit-registry-XXXXXX";
    base_ = ::mkdtemp(name);
    fs::create_directory(base_ + "/instances");
    registry_.emplace(base_);
  }
  void TearDown() override {
    claimed_.clear();
    fs::remove_all(base_);
  }

  std::string image(const std::string& name) const {
    std::ofstream(base_ + "/" + name) << 1;
    return base_ + "/" + name;
  }

  struct Description {
    std::vector<std::string> chain{};
    std::vector<std::pair<unsigned, std::string>> vbds{};
    uint64_t start_time = process_start_time(::getpid()).value_or(0);
  };

  static std::string record_of(const Description& d) {
    control::JsonWriter w;
    w.begin_object().field("pid", static_cast<uint64_t>(::getpid()));
    w.field("start-time", d.start_time).field("state", "running").field("spec", "raw:/x");
    w.key("chain").begin_array();
    for (const std::string& path : d.chain) {
      struct stat st {};
      EXPECT_EQ(::stat(path.c_str(), &st), 0);
      w.begin_object().field("path", path).field("device", uint64_t{st.st_dev});
      w.field("inode", uint64_t{st.st_ino}).end_object();
    }
    w.end_array().key("consumers").begin_array();
    for (const auto& [domid, devid] : d.vbds) {
      w.begin_object().field("type", "vbd").field("domid", uint64_t{domid});
      w.field("devid", devid).end_object();
    }
    w.end_array().end_object();
    return w.take();
  }

  static std::set<std::string> keys_of(const Description& d) {
    std::set<std::string> keys;
    for (const std::string& path : d.chain) {
      struct stat st {};
      EXPECT_EQ(::stat(path.c_str(), &st), 0);
      keys.insert(file_key(st.st_dev, st.st_ino));
    }
    for (const auto& [domid, devid] : d.vbds) keys.insert(vbd_key(domid, devid));
    return keys;
  }

  std::string directory(const std::string& uuid) const { return base_ + "/instances/" + uuid; }

  // As an instance registers.
  RuntimeDir& add(const std::string& uuid, const Description& d) {
    auto dir = RuntimeDir::claim(directory(uuid));
    EXPECT_TRUE(dir);
    EXPECT_TRUE(dir->write_record(record_of(d), keys_of(d)));
    return claimed_.emplace(uuid, std::move(*dir)).first->second;
  }

  std::set<std::string> uuids(const Result<std::vector<InstanceRecord>>& records) {
    EXPECT_TRUE(records) << (records ? "" : records.error().message());
    std::set<std::string> out;
    if (!records) return out;
    for (const InstanceRecord& record : *records) out.insert(record.uuid);
    return out;
  }

  using Uuids = std::set<std::string>;
  std::string base_;
  std::optional<Registry> registry_;
  std::map<std::string, RuntimeDir> claimed_;
};

TEST_F(RegistryTest, IsEmptyWhereNothingEverRan) {
  const Registry nowhere(base_ + "/nowhere");
  EXPECT_EQ(uuids(nowhere.list()), Uuids{});
  EXPECT_EQ(nowhere.find_uuid("aaaa").error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(uuids(nowhere.find_image(image("a"), Registry::Where::kAnywhere)), Uuids{});
}

TEST_F(RegistryTest, FindsByUuidAndByPartOfItThatIsUnique) {
  add("aaaa1111", {});
  add("aaaa2222", {});
  EXPECT_EQ(registry_->find_uuid("aaaa1111")->uuid, "aaaa1111");
  EXPECT_EQ(registry_->find_uuid("aaaa2")->uuid, "aaaa2222");
  EXPECT_EQ(registry_->find_uuid("aaaa").error().kind(), ErrorKind::kInvalid);
  EXPECT_EQ(registry_->find_uuid("aaa").error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(registry_->find_uuid("../x").error().kind(), ErrorKind::kNotFound);
}

TEST_F(RegistryTest, FindsAnImageUnderAnyNameAndAnywhereInTheChain) {
  const std::string base = image("base");
  add("one", {.chain = {image("a"), base}});
  add("two", {.chain = {image("b"), base}});
  fs::create_symlink(base, base_ + "/other-name");
  using enum Registry::Where;
  EXPECT_EQ(uuids(registry_->find_image(base_ + "/a", kLeaf)), Uuids{"one"});
  EXPECT_EQ(uuids(registry_->find_image(base_ + "/other-name", kAnywhere)), (Uuids{"one", "two"}));
  EXPECT_EQ(uuids(registry_->find_image(base, kLeaf)), Uuids{});
  EXPECT_EQ(uuids(registry_->find_image(image("c"), kAnywhere)), Uuids{});
  EXPECT_EQ(registry_->find_image(base_ + "/missing", kLeaf).error().kind(), ErrorKind::kNotFound);
}

TEST_F(RegistryTest, FollowsAChangeOfTheChain) {
  const std::string a = image("a"), b = image("b");
  RuntimeDir& dir = add("one", {.chain = {a}});
  const Description now{.chain = {b}, .vbds = {{5, "51712"}}};
  ASSERT_TRUE(dir.write_record(record_of(now), keys_of(now)));
  using enum Registry::Where;
  EXPECT_EQ(uuids(registry_->find_image(a, kAnywhere)), Uuids{});
  EXPECT_EQ(uuids(registry_->find_image(b, kAnywhere)), Uuids{"one"});
  EXPECT_EQ(uuids(registry_->find_vbd(5, "51712")), Uuids{"one"});
  EXPECT_EQ(uuids(registry_->find_vbd(6, "51712")), Uuids{});
  // Nothing is left of what no longer holds.
  EXPECT_EQ(std::distance(fs::directory_iterator(base_ + "/index"), {}), 2);
}

TEST_F(RegistryTest, UnregistersWithoutLeavingAnything) {
  add("one", {.chain = {image("a")}});
  claimed_.clear();
  EXPECT_EQ(uuids(registry_->list()), Uuids{});
  EXPECT_TRUE(fs::is_empty(base_ + "/index"));
  EXPECT_TRUE(fs::is_empty(base_ + "/instances"));
}

TEST_F(RegistryTest, ALinkAloneMakesNobodyFound) {
  const std::string a = image("a");
  RuntimeDir& dir = add("one", {.chain = {a}});
  // As between the link and the record, or from a hostile instance.
  ASSERT_TRUE(dir.write_record(record_of({}), keys_of({.chain = {a}})));
  EXPECT_EQ(uuids(registry_->find_image(a, Registry::Where::kAnywhere)), Uuids{});
}

TEST_F(RegistryTest, WhatWasKilledIsDeadInTheListAndFoundByNobody) {
  const std::string a = image("a");
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    add("killed", {.chain = {a}, .vbds = {{5, "51712"}}});
    if (::write(ready[1], "", 1) != 1) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_EQ(registry_->find_uuid("killed")->pid, child);
  EXPECT_EQ(uuids(registry_->find_vbd(5, "51712")), Uuids{"killed"});
  ::kill(child, SIGKILL);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);

  const auto all = registry_->list();
  ASSERT_EQ(all->size(), 1u);
  EXPECT_FALSE(all->front().alive);
  EXPECT_EQ(registry_->find_uuid("killed").error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(uuids(registry_->find_image(a, Registry::Where::kAnywhere)), Uuids{});
  EXPECT_EQ(uuids(registry_->find_vbd(5, "51712")), Uuids{});

  RuntimeDir::clean(directory("killed"));
  EXPECT_TRUE(fs::is_empty(base_ + "/index"));
  EXPECT_TRUE(fs::is_empty(base_ + "/instances"));
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(RegistryTest, ALockHeldByAnotherProcessThanTheRecordsIsNoLife) {
  Description d;
  d.start_time += 1;  // the process id was used again
  add("one", d);
  ASSERT_TRUE(RuntimeDir::alive(directory("one")));
  EXPECT_FALSE(registry_->list()->front().alive);
}

TEST_F(RegistryTest, RecordsThatAreNoneHarmNobody) {
  add("good", {});
  for (const char* text : {"", "nonsense", "[1]", "{\"pid\":\"x\",\"chain\":{\"a\":1}}"}) {
    RuntimeDir& dir = add("bad" + std::to_string(claimed_.size()), {});
    ASSERT_TRUE(dir.write_record(text));
  }
  // Neither links nor pipes are read.
  for (const char* uuid : {"link", "pipe"}) {
    RuntimeDir& dir = add(uuid, {});
    fs::remove(dir.file("record.json"));
    fs::remove(dir.file("pid"));
  }
  fs::create_symlink(directory("good") + "/record.json", directory("link") + "/record.json");
  fs::create_symlink(directory("good") + "/pid", directory("link") + "/pid");
  ASSERT_EQ(::mkfifo((directory("pipe") + "/record.json").c_str(), 0600), 0);
  ASSERT_EQ(::mkfifo((directory("pipe") + "/pid").c_str(), 0600), 0);
  const auto all = registry_->list();
  ASSERT_EQ(all->size(), 7u);
  for (const InstanceRecord& record : *all) EXPECT_EQ(record.alive, record.uuid == "good");
}

TEST_F(RegistryTest, CleaningRemovesNoLinksOfOthers) {
  const std::string a = image("a");
  add("one", {.chain = {a}});
  fs::create_directory(directory("dead"));
  fs::create_directory(base_ + "/outside");
  std::ofstream(base_ + "/outside/dead") << 1;
  fs::create_symlink(base_ + "/outside", base_ + "/index/linked");
  std::ofstream(directory("dead") + "/keys")
      << *keys_of({.chain = {a}}).begin() << "\n../outside\n..\n\nlinked\n";
  RuntimeDir::clean(directory("dead"));
  EXPECT_EQ(uuids(registry_->find_image(a, Registry::Where::kLeaf)), Uuids{"one"});
  EXPECT_TRUE(fs::exists(base_ + "/outside/dead"));
}

}  // namespace
}  // namespace vbdkit::storage
