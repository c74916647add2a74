// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/log_filter.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "drivers/allocation_count.h"
#include "drivers/fault_filter.h"

namespace vbdkit::drivers {
namespace {

using std::chrono::milliseconds;

constexpr uint64_t kSize = 1 << 20;  // bytes

class LogFilterTest : public testing::Test {
 protected:
  LogFilterTest()
      : lines_(memfd_create("log", MFD_CLOEXEC)),
        log_("test", LogLevel::kInfo, lines_.get()),
        reactor_(io::Reactor::create({}, quiet_).value()) {}

  // Over a disk whose requests take `took_` and end with `error_`.
  void make(LogOptions options) {
    const OpenContext context{*reactor_, log_, {}};
    NodePtr disk = open_graph(parse_graph("null,size=1M").value(), context).value();
    disk = std::make_unique<FaultFilter>(std::move(disk), [this](const Request&) {
      now_ += took_;
      return error_;
    });
    filter_ = std::make_unique<LogFilter>(std::move(disk), NodeSpec{"log", "", {}},
                                          std::move(options), context, [this] { return now_; });
  }

  int run(Op op, uint64_t offset = 0, uint64_t length = 0, uint8_t flags = 0) {
    struct Asked : Request {
      int error = -1;
    } request;
    request.op = op;
    request.flags = flags;
    request.offset = offset;
    request.length = length;
    iovec memory{nullptr, length};
    if (op == Op::kWrite) {
      request.iov = &memory;
      request.iov_count = 1;
    }
    request.done = [](Request& r, int error) { static_cast<Asked&>(r).error = error; };
    filter_->submit(request);
    return request.error;
  }

  std::string text() const {
    std::string out(static_cast<size_t>(lseek(lines_.get(), 0, SEEK_CUR)), '\0');
    EXPECT_EQ(static_cast<ssize_t>(out.size()), pread(lines_.get(), out.data(), out.size(), 0));
    return out;
  }
  size_t line_count() const {
    const std::string all = text();
    return static_cast<size_t>(std::count(all.begin(), all.end(), '\n'));
  }

  Fd lines_;
  Logger quiet_{"test", LogLevel::kWarning};
  Logger log_;
  std::unique_ptr<io::Reactor> reactor_;
  LogFilter::Time now_{std::chrono::hours(1)};
  std::chrono::nanoseconds took_ = std::chrono::microseconds(1500);
  int error_ = 0;
  std::unique_ptr<LogFilter> filter_;
};

TEST_F(LogFilterTest, ALineSaysWhatWhereHowItEndedAndHowLongItTook) {
  make({.name = "top"});
  EXPECT_EQ(0, run(Op::kWrite, 4096, 8192, kFua));
  EXPECT_EQ(0, run(Op::kFlush));
  error_ = ENOSPC;
  EXPECT_EQ(ENOSPC, run(Op::kWriteZeroes, 0, 512, kMayUnmap));
  EXPECT_EQ(
      "test: log top: write 4096+8192 fua: ok, 1.500 ms\n"
      "test: log top: flush: ok, 1.500 ms\n"
      "test: log top: write-zeroes 0+512 may-unmap: No space left on device, 1.500 ms\n",
      text());
}

TEST_F(LogFilterTest, OnlyTheOperationsAskedForGetALineButEveryFailureDoes) {
  make({.ops = {false, true, false, false, false}});
  run(Op::kFlush);
  run(Op::kDiscard, 0, 512);
  EXPECT_EQ(0u, line_count());
  run(Op::kWrite, 0, 512);
  EXPECT_EQ(1u, line_count());
  error_ = EIO;
  run(Op::kDiscard, 0, 512);
  EXPECT_EQ(2u, line_count());
}

TEST_F(LogFilterTest, QuickRequestsGetNoLineWhereOnlySlowOnesAreWanted) {
  make({.slower_than = milliseconds(10)});
  run(Op::kWrite, 0, 512);
  took_ = milliseconds(10);
  run(Op::kWrite, 512, 512);
  EXPECT_EQ("test: log: write 512+512: ok, 10.000 ms\n", text());
}

TEST_F(LogFilterTest, LinesAreBoundedPerSecondAndTheNextOneTellsHowManyAreMissing) {
  took_ = {};
  make({.rate = 3});
  for (int i = 0; i < 100; ++i) run(Op::kFlush);
  EXPECT_EQ(3u, line_count());
  now_ += milliseconds(1000);
  run(Op::kFlush);
  EXPECT_TRUE(text().ends_with("flush: ok, 0.000 ms (97 lines left out before)\n")) << text();
}

TEST_F(LogFilterTest, TheEndBringsASummaryOfEverythingAlsoOfWhatGotNoLine) {
  make({.ops = {}});
  for (int i = 0; i < 3; ++i) run(Op::kWrite, 0, 512);
  run(Op::kFlush);
  EXPECT_EQ(3u, filter_->counters().ops[static_cast<size_t>(Op::kWrite)].requests);
  filter_.reset();
  EXPECT_EQ("test: log: write 3 (1536 bytes), flush 1, failed 0, in flight 0, slowest 1.500 ms\n",
            text());
}

TEST_F(LogFilterTest, NothingIsAllocatedForARequestOnceThePoolHasGrown) {
  make({.rate = 0});
  run(Op::kWrite, 0, 512);
  const uint64_t before = allocation_count();
  for (int i = 0; i < 100; ++i) run(Op::kWrite, 0, 512);
  EXPECT_EQ(before, allocation_count());
  EXPECT_EQ(101u, line_count());
}

TEST_F(LogFilterTest, AnOperationThatDoesNotExistIsAnErrorThatNamesThoseThatDo) {
  auto node =
      open_graph(parse_graph("log:ops=read+trim|null,size=1M").value(), {*reactor_, log_, {}});
  ASSERT_FALSE(node.ok());
  EXPECT_EQ("log: ops: 'trim' is none of read, write, flush, discard, write-zeroes",
            node.error().message());
}

}  // namespace
}  // namespace vbdkit::drivers
