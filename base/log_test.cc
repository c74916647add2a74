// SPDX-License-Identifier: LGPL-2.1-or-later
#include "base/log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "base/fd.h"

namespace vbdkit {
namespace {

struct Pipe {
  Pipe() {
    int p[2];
    EXPECT_EQ(0, pipe2(p, O_CLOEXEC | O_NONBLOCK));
    read_end = Fd(p[0]);
    write_end = Fd(p[1]);
  }
  std::string drain() {
    char buf[8192];
    ssize_t n = ::read(read_end.get(), buf, sizeof buf);
    return n > 0 ? std::string(buf, static_cast<size_t>(n)) : std::string();
  }
  Fd read_end, write_end;
};

TEST(Logger, WritesOneLinePerMessageAndDropsWhatIsBelowTheThreshold) {
  unsetenv("JOURNAL_STREAM");
  Pipe p;
  Logger log("prog", LogLevel::kNotice, p.write_end.get());
  log.info("quiet");
  log.error("disk %d", 7);
  EXPECT_EQ("prog: disk 7\n", p.drain());
}

TEST(Logger, PrefixesThePriorityUnderTheJournal) {
  setenv("JOURNAL_STREAM", "1:2", 1);
  Pipe p;
  Logger log("prog", LogLevel::kNotice, p.write_end.get());
  unsetenv("JOURNAL_STREAM");
  log.warning("slow");
  EXPECT_EQ("<4>slow\n", p.drain());
}

TEST(Logger, ReplacesControlCharactersThatAGuestMayHaveWritten) {
  Pipe p;
  Logger log("prog", LogLevel::kNotice, p.write_end.get());
  log.error("name %s", "a\x1b[2J\nb");
  EXPECT_EQ("prog: name a?[2J?b\n", p.drain());
}

TEST(Logger, CutsAnOverlongMessageAndStillEndsTheLine) {
  Pipe p;
  Logger log("prog", LogLevel::kNotice, p.write_end.get());
  log.error("%s", std::string(100000, 'x').c_str());
  std::string out = p.drain();
  EXPECT_LT(out.size(), 4096u);
  EXPECT_EQ('\n', out.back());
}

TEST(Logger, LimitsWhatAGuestCanProvokeAndSaysHowManyItSwallowed) {
  Pipe p;
  Logger log("prog", LogLevel::kNotice, p.write_end.get());
  RateLimit limit(2, std::chrono::hours(1));
  for (int i = 0; i < 10; ++i) log.limited(limit, LogLevel::kWarning, "bad request %d", i);
  EXPECT_EQ("prog: bad request 0\nprog: bad request 1\n", p.drain());
}

TEST(RateLimit, ReportsTheSwallowedCountWhenTheWindowOpensAgain) {
  RateLimit limit(1, std::chrono::seconds(10));
  RateLimit::Clock::time_point t{std::chrono::hours(1)};
  uint64_t suppressed = 99;
  EXPECT_TRUE(limit.allow(t, &suppressed));
  EXPECT_EQ(0u, suppressed);
  EXPECT_FALSE(limit.allow(t, &suppressed));
  EXPECT_FALSE(limit.allow(t + std::chrono::seconds(9), &suppressed));
  EXPECT_TRUE(limit.allow(t + std::chrono::seconds(10), &suppressed));
  EXPECT_EQ(2u, suppressed);
}

}  // namespace
}  // namespace vbdkit
