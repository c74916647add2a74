// SPDX-License-Identifier: LGPL-2.1-or-later
#include "base/command_line.h"

#include <gtest/gtest.h>

namespace vbdkit {
namespace {

class CommandLineTest : public testing::Test {
 protected:
  CommandLineTest() {
    line_.flag("read-only", read_only_).flag("no-nbd", nbd_, false);
    line_.text("spec", spec_).texts("vbd", vbds_).number("threads", threads_, 1, 64);
    line_.parsed("level", [](const char* value) -> Result<void> {
      return Error(ErrorKind::kInvalid, std::string("no level: ") + value);
    });
  }

  Result<CommandLine::Rest> parse(std::vector<std::string> words) {
    words.insert(words.begin(), "prog");
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    return line_.parse(static_cast<int>(words.size()), argv.data());
  }
  std::string error(std::vector<std::string> words) {
    const auto parsed = parse(std::move(words));
    return parsed ? "" : parsed.error().message();
  }

  bool read_only_ = false;
  bool nbd_ = true;
  std::string spec_;
  std::vector<std::string> vbds_;
  unsigned threads_ = 1;
  CommandLine line_{"prog", "usage: prog\n"};
};

TEST_F(CommandLineTest, OptionsReachTheirTargetsAndTheRestIsLeft) {
  const auto parsed = parse({"--spec", "raw:/a", "--vbd=1", "--read-only", "--no-nbd", "--vbd", "2",
                             "--threads=64", "word", "--", "--spec"});
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_FALSE(parsed->answered);
  EXPECT_EQ(spec_, "raw:/a");
  EXPECT_EQ(vbds_, (std::vector<std::string>{"1", "2"}));
  EXPECT_TRUE(read_only_);
  EXPECT_FALSE(nbd_);
  EXPECT_EQ(threads_, 64u);
  EXPECT_EQ(parsed->arguments, (std::vector<std::string>{"word", "--spec"}));
}

TEST_F(CommandLineTest, WhatIsNotAnOptionIsNamed) {
  EXPECT_EQ(error({"--spce", "raw:/a"}), "unknown option '--spce'; see prog --help");
  EXPECT_EQ(error({"-x"}), "unknown option '-x'; see prog --help");
  EXPECT_EQ(error({"--spec"}), "--spec takes a value; see prog --help");
  EXPECT_EQ(error({"--read-only=yes"}), "unknown option '--read-only=yes'; see prog --help");
}

TEST_F(CommandLineTest, NumbersAreWholeAndWithinTheirLimits) {
  for (const char* bad : {"0", "65", "", "4x", "-1", "99999999999"})
    EXPECT_EQ(error({"--threads", bad}),
              "--threads takes a number from 1 to 64, not '" + std::string(bad) + "'");
  EXPECT_EQ(threads_, 1u);
}

TEST_F(CommandLineTest, AValuesOwnErrorIsPassedOn) {
  EXPECT_EQ(error({"--level", "loud"}), "no level: loud");
}

TEST_F(CommandLineTest, HelpAndVersionEndIt) {
  for (const char* word : {"--help", "--version"}) {
    const auto parsed = parse({word, "--unknown"});
    ASSERT_TRUE(parsed);
    EXPECT_TRUE(parsed->answered);
  }
}

}  // namespace
}  // namespace vbdkit
