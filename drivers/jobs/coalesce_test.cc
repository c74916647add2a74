// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A coalesce that was cut in the middle of a write: what the journal is for. (That it can be killed
// at every write is tried from outside, by tests/tools/coalesce.sh.)
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "drivers/drivers.h"
#include "drivers/jobs/coalesce_job.h"
#include "drivers/vhd/test_disk.h"
#include "drivers/vhd/test_image.h"

namespace vbdkit::drivers {
namespace {

using Stage = CoalesceJournal::Stage;

TEST(CoalesceJournal, IsReadAsItWasWritten) {
  CoalesceJournal journal;
  journal.image = 4711;
  journal.parent = UINT64_MAX;
  journal.stage = Stage::kRelink;
  journal.copied = uint64_t{1} << 40;
  journal.children.push_back({"/srv/a b\nc.vhd", "vhd", {{512, {std::byte{0xff}}}, {0, {}}}});
  journal.children.back().patches.pop_back();
  journal.children.push_back({"/srv/d.qcow2", "qcow2", {}});
  const auto read = CoalesceJournal::parse(journal.to_text());
  ASSERT_TRUE(read.ok()) << read.error().message();
  EXPECT_EQ(journal.to_text(), read->to_text());
  EXPECT_EQ("/srv/a b\nc.vhd", read->children[0].path);
  EXPECT_EQ(Stage::kRelink, read->stage);
}

TEST(CoalesceJournal, DamagedTextIsAnErrorOrAnotherJournal) {
  CoalesceJournal journal;
  journal.children.push_back({"/srv/a.vhd", "vhd", {{512, std::vector<std::byte>(64)}}});
  const std::string text = journal.to_text();
  std::mt19937_64 random(1);
  unsigned refused = 0;
  for (unsigned i = 0; i < 2000; ++i) {
    std::string damaged = text;
    for (unsigned k = 0; k <= random() % 3; ++k)
      damaged[random() % damaged.size()] = static_cast<char>(random());
    damaged.resize(random() % (damaged.size() + 1));
    refused += !CoalesceJournal::parse(damaged).ok();
  }
  EXPECT_GT(refused, 1000u);
  EXPECT_FALSE(CoalesceJournal::parse("").ok());
}

class Coalesce : public testing::TestWithParam<const char*> {
 protected:
  Coalesce()
      : log_("test", LogLevel::kWarning),
        reactor_(std::move(io::Reactor::create({}, log_)).value()) {}

  std::string format() const { return GetParam(); }
  std::string path(const std::string& name) const { return (directory_ / name) + "." + format(); }
  void make(const std::string& name, const std::string& parent) {
    CreateRequest request;
    request.path = path(name);
    request.size = Bytes{parent.empty() ? uint64_t{8} << 20 : 0};
    if (!parent.empty()) {
      request.parent = path(parent);
      request.parent_format = format();
    }
    const auto made = find_image_format(format())->create(request);
    ASSERT_TRUE(made.ok()) << made.error().message();
  }
  Result<void> coalesce(const std::string& name, CoalesceOptions options = {.stretch = 1 << 20}) {
    VBDKIT_ASSIGN(const auto job,
                  CoalesceJob::plan({format(), path(name), {}}, options, {*reactor_, log_, {}}));
    Result<void> outcome;
    job->start([&](Result<void> result) {
      outcome = std::move(result);
      reactor_->stop();
    });
    VBDKIT_TRY(reactor_->run());
    return outcome;
  }
  std::vector<std::byte> content(const std::string& name) {
    vhd::TestDisk disk;
    const auto opened = disk.open(format() + ":" + path(name), true);
    EXPECT_TRUE(opened.ok()) << opened.error().message();
    return opened ? disk.read(0, disk.node().info().size.v) : std::vector<std::byte>();
  }

  vhd::TestDirectory directory_;
  Logger log_;
  std::unique_ptr<io::Reactor> reactor_;
};

// Every patch of a child torn at every sector: with the journal of that moment the next run finds
// the way on.
TEST_P(Coalesce, AChildThatIsTornIsMadeWholeFromTheJournal) {
  make("base", "");
  make("mid", "base");
  make("child", "mid");
  for (const char* name : {"base", "mid", "child"}) {
    vhd::TestDisk disk;
    ASSERT_TRUE(disk.open(format() + ":" + path(name)).ok());
    const auto fill = std::byte(name[0]);
    disk.write(name[0] == 'b'   ? 0
               : name[0] == 'm' ? 1 << 20
                                : 3 << 20,
               std::vector<std::byte>(2 << 20, fill));
    disk.flush();
  }
  const std::vector<std::byte> expected = content("child");
  const auto patches =
      find_image_format(format())->plan_parent(path("child"), path("base"), format());
  ASSERT_TRUE(patches.ok()) << patches.error().message();

  const std::string saved = directory_ / "saved";
  std::filesystem::create_directory(saved);
  const auto copy_all = [&](const std::string& from, const std::string& to) {
    for (const char* name : {"base", "mid", "child"})
      std::filesystem::copy_file(from + "/" + name + "." + format(),
                                 to + "/" + name + "." + format(),
                                 std::filesystem::copy_options::overwrite_existing);
  };
  const std::string here = std::filesystem::path(path("base")).parent_path();
  copy_all(here, saved);

  unsigned torn = 0;
  for (size_t i = 0; i < patches->size(); ++i) {
    const FilePatch& last = (*patches)[i];
    for (size_t cut = 0; cut <= last.bytes.size(); cut += kSectorSize) {
      SCOPED_TRACE(i * 100000 + cut);
      copy_all(saved, here);
      CoalesceJournal journal;
      struct stat st {};
      ASSERT_EQ(0, stat(path("mid").c_str(), &st));
      journal.image = st.st_ino;
      ASSERT_EQ(0, stat(path("base").c_str(), &st));
      journal.parent = st.st_ino;
      journal.stage = Stage::kCopy;
      journal.children.push_back({path("child"), format(), *patches});
      // All but the child is where it shall be.
      ASSERT_TRUE(journal.save(CoalesceJournal::path_for(path("mid"))).ok());
      auto file = ImageFile::open(path("child"), ImageFile::Mode::kWrite);
      ASSERT_TRUE(file.ok());
      ASSERT_TRUE(apply_patches(*file, std::span(*patches).first(i)).ok());
      ASSERT_TRUE(file->write(last.offset, std::span(last.bytes).first(cut)).ok());
      torn += !find_image_format(format())->inspect(path("child")).ok();
      const auto done = coalesce("mid");
      ASSERT_TRUE(done.ok()) << done.error().message();
      EXPECT_EQ(expected, content("child"));
      EXPECT_FALSE(std::filesystem::exists(path("mid")));
      EXPECT_FALSE(std::filesystem::exists(CoalesceJournal::path_for(path("mid"))));
    }
  }
  // A VHD's header is longer than a sector, so that there is something to mend.
  EXPECT_EQ(format() == "vhd", torn > 0);
}

// What the interrupted job has put on the parent was snapshotted since.
TEST_P(Coalesce, IsEndedWhereAChildHasAnotherNameByNow) {
  make("base", "");
  make("mid", "base");
  make("child", "mid");
  {
    vhd::TestDisk disk;
    ASSERT_TRUE(disk.open(format() + ":" + path("mid")).ok());
    disk.write(0, std::vector<std::byte>(2 << 20, std::byte{'m'}));
    disk.flush();
  }
  const std::vector<std::byte> expected = content("child");
  unsigned steps = 0;
  // Copied, the child relinked, and then no further.
  const auto stopped = coalesce("mid", {.stretch = 16 << 20, .may_write = [&]() -> Result<void> {
                                          if (++steps < 3) return {};
                                          return Error(ErrorKind::kIo, "enough", ECANCELED);
                                        }});
  ASSERT_FALSE(stopped.ok());
  ASSERT_TRUE(std::filesystem::exists(path("mid")));
  ASSERT_EQ(path("base"),
            std::filesystem::canonical(
                find_image_format(format())->inspect(path("child"))->parent.value().path));
  std::filesystem::rename(path("child"), path("snapshot"));
  make("child", "snapshot");

  const auto done = coalesce("mid");
  ASSERT_TRUE(done.ok()) << done.error().message();
  EXPECT_FALSE(std::filesystem::exists(path("mid")));
  EXPECT_TRUE(std::filesystem::exists(path("base")));
  EXPECT_TRUE(expected == content("child"));
}

TEST_P(Coalesce, AJournalOfOtherFilesIsNotFollowed) {
  make("base", "");
  make("mid", "base");
  CoalesceJournal journal;
  journal.image = 1;
  journal.stage = Stage::kRelink;
  ASSERT_TRUE(journal.save(CoalesceJournal::path_for(path("mid"))).ok());
  const auto done = coalesce("mid");
  ASSERT_FALSE(done.ok());
  EXPECT_NE(std::string::npos, done.error().message().find("about other files"));
  EXPECT_TRUE(std::filesystem::exists(path("mid")));
}

// Nobody stands on it, so somebody may have used it since.
TEST_P(Coalesce, AnImageThatWasWrittenSinceIsCopiedAgain) {
  for (const auto stage : {Stage::kCopy, Stage::kRelink}) {
    make("base", "");
    make("mid", "base");
    {
      vhd::TestDisk disk;
      ASSERT_TRUE(disk.open(format() + ":" + path("mid")).ok());
      disk.write(1 << 20, std::vector<std::byte>(2 << 20, std::byte{0x6d}));
      disk.flush();
    }
    const auto expected = content("mid");
    CoalesceJournal journal;
    struct stat st {};
    ASSERT_EQ(0, stat(path("mid").c_str(), &st));
    journal.image = st.st_ino;
    journal.modified = 1;
    ASSERT_EQ(0, stat(path("base").c_str(), &st));
    journal.parent = st.st_ino;
    journal.stage = stage;
    journal.copied = uint64_t{1} << 40;
    ASSERT_TRUE(journal.save(CoalesceJournal::path_for(path("mid"))).ok());
    const auto done = coalesce("mid");
    ASSERT_TRUE(done.ok()) << done.error().message();
    EXPECT_EQ(expected, content("mid"));
    EXPECT_FALSE(std::filesystem::exists(path("base")));
    std::filesystem::remove(path("mid"));
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Coalesce, testing::Values("vhd", "qcow2"),
                         [](const auto& subject) { return std::string(subject.param); });

}  // namespace
}  // namespace vbdkit::drivers
