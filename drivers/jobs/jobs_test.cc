// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Jobs on nodes that count, fail and hold on: holes are not read, no more requests than allowed are
// under way, every failure ends the job with its own message.
#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "drivers/fault_filter.h"
#include "drivers/jobs/compare_job.h"
#include "drivers/jobs/copy_job.h"
#include "drivers/registry.h"

namespace vbdkit::drivers {
namespace {

constexpr uint64_t kSize = 8 << 20;
constexpr uint64_t kPiece = 64 << 10;

class Jobs : public testing::Test {
 protected:
  Jobs()
      : log_("test", LogLevel::kWarning),
        reactor_(std::move(io::Reactor::create({}, log_)).value()) {}

  NodePtr ram(uint64_t size = kSize) {
    const auto graph = parse_graph("ram,size=" + std::to_string(size));
    return std::move(open_graph(*graph, {*reactor_, log_, {}})).value();
  }
  static void write(Node& node, uint64_t offset, std::vector<char> bytes) {
    iovec iov{bytes.data(), bytes.size()};
    Request request;
    request.op = Op::kWrite;
    request.offset = offset;
    request.length = bytes.size();
    request.iov = &iov;
    request.iov_count = 1;
    request.done = [](Request&, int error) { EXPECT_EQ(0, error); };
    node.submit(request);
  }
  static std::vector<char> read(Node& node) {
    std::vector<char> bytes(node.info().size.v);
    iovec iov{bytes.data(), bytes.size()};
    Request request;
    request.length = bytes.size();
    request.iov = &iov;
    request.iov_count = 1;
    request.done = [](Request&, int error) { EXPECT_EQ(0, error); };
    node.submit(request);
    return bytes;
  }
  // Data, zeroes that are stored, and holes, in pieces of random length.
  void fill(Node& node, std::mt19937_64& random) {
    for (uint64_t at = 0; at < node.info().size.v;) {
      const uint64_t length =
          std::min<uint64_t>(node.info().size.v - at, kSectorSize * (1 + random() % 512));
      const uint64_t kind = random() % 3;
      std::vector<char> bytes(length);
      if (kind == 0)
        for (char& c : bytes) c = static_cast<char>(random());
      if (kind != 2) write(node, at, std::move(bytes));
      at += length;
    }
  }

  Logger log_;
  std::unique_ptr<io::Reactor> reactor_;
};

// Keeps requests until they are let go, in another order than they came.
class HoldingFilter final : public Filter {
 public:
  using Filter::Filter;
  std::string_view driver() const override { return "hold"; }
  std::string spec() const override { return next().spec(); }
  void submit(Request& request) override {
    held_.push_back(&request);
    most_ = std::max(most_, held_.size());
  }
  bool release(std::mt19937_64& random) {
    if (held_.empty()) return false;
    const size_t i = random() % held_.size();
    Request* const request = held_[i];
    held_.erase(held_.begin() + static_cast<ptrdiff_t>(i));
    next().submit(*request);
    return true;
  }
  size_t most() const { return most_; }

 private:
  std::vector<Request*> held_;
  size_t most_ = 0;
};

TEST_F(Jobs, CopiesWhateverTheOrderOfCompletion) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    HoldingFilter from(ram());
    HoldingFilter to(ram());
    fill(*from.next_node(), random);
    const bool zero = random() % 2 == 0;
    if (!zero) fill(*to.next_node(), random);
    CopyOptions options;
    options.requests = 1 + static_cast<unsigned>(random() % 7);
    options.request_size = kPiece << (random() % 3);
    options.destination_zero = zero;
    options.sparse = random() % 3 == 0 ? 0 : 4096 << (random() % 4);
    CopyJob job(from, to, options);
    bool done = false;
    job.start([&](Result<void> result) {
      EXPECT_TRUE(result.ok()) << result.error().message();
      done = true;
    });
    while (from.release(random) || to.release(random)) {
    }
    ASSERT_TRUE(done);
    EXPECT_EQ(job.total(), job.settled());
    EXPECT_LE(from.most(), options.requests);
    EXPECT_LE(to.most(), options.requests);
    EXPECT_EQ(read(*from.next_node()), read(*to.next_node()));
  }
}

TEST_F(Jobs, CopyingALayerKeepsWhatItDoesNotHold) {
  std::mt19937_64 random(3);
  const NodePtr from = ram();
  const NodePtr to = ram();
  write(*to, 0, std::vector<char>(kSize, 'b'));
  write(*from, 1 << 20, std::vector<char>(kPiece, 'a'));
  write(*from, 5 << 20, std::vector<char>(1 << 20, 'a'));
  std::vector<char> expected(kSize, 'b');
  std::fill_n(expected.begin() + (1 << 20), kPiece, 'a');
  std::fill_n(expected.begin() + (5 << 20), 1 << 20, 'a');
  CopyOptions options;
  options.absent = CopyOptions::Absent::kKeep;
  CopyJob job(*from, *to, options);
  bool done = false;
  job.start([&](Result<void> result) { done = result.ok(); });
  ASSERT_TRUE(done);
  EXPECT_EQ(expected, read(*to));
}

TEST_F(Jobs, HolesAreNotReadAndNotWritten) {
  uint64_t bytes_read = 0;
  uint64_t writes = 0;
  FaultFilter from(ram(uint64_t{1} << 40), [&](const Request& r) {
    bytes_read += r.length;
    return 0;
  });
  FaultFilter to(ram(uint64_t{1} << 40), [&](const Request& r) {
    writes += r.op != Op::kFlush;
    return 0;
  });
  write(*from.next_node(), uint64_t{1} << 39, std::vector<char>(kPiece, 'x'));
  CopyOptions options;
  options.destination_zero = true;
  CopyJob job(from, to, options);
  bool done = false;
  job.start([&](Result<void> result) { done = result.ok(); });
  ASSERT_TRUE(done);
  EXPECT_EQ(kPiece, bytes_read);
  EXPECT_EQ(1u, writes);
}

TEST_F(Jobs, EachFailureEndsTheCopy) {
  for (const Op failing : {Op::kRead, Op::kWrite, Op::kFlush}) {
    for (unsigned nth = 0;; ++nth) {
      std::mt19937_64 random(5);
      unsigned count = 0;
      const auto judge = [&](const Request& r) {
        return r.op == failing && count++ == nth ? EIO : 0;
      };
      FaultFilter from(ram(), judge);
      FaultFilter to(ram(), judge);
      fill(*from.next_node(), random);
      CopyOptions options;
      options.request_size = 1 << 20;
      CopyJob job(from, to, options);
      int answers = 0;
      bool ok = false;
      std::string message;
      job.start([&](Result<void> result) {
        ++answers;
        ok = result.ok();
        if (!ok) message = result.error().message();
      });
      ASSERT_EQ(1, answers);
      ASSERT_EQ(count <= nth, ok);
      if (ok) {
        EXPECT_GT(nth, 0u);
        break;
      }
      EXPECT_NE(std::string::npos, message.find("ram")) << message;
    }
  }
}

TEST_F(Jobs, ACancelledCopyWaitsForWhatIsUnderWay) {
  std::mt19937_64 random(7);
  HoldingFilter from(ram());
  const NodePtr to = ram();
  write(*from.next_node(), 0, std::vector<char>(kSize, 'x'));
  CopyJob job(from, *to, {});
  int error = 0;
  job.start([&](Result<void> result) { error = result.ok() ? 0 : result.error().sys_errno(); });
  job.cancel();
  EXPECT_EQ(0, error);
  while (from.release(random)) {
  }
  EXPECT_EQ(ECANCELED, error);
}

TEST_F(Jobs, CompareFindsTheFirstOfManyDifferences) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    HoldingFilter a(ram());
    HoldingFilter b(ram(kSize + (random() % 2) * kSize));
    fill(*a.next_node(), random);
    std::vector<char> content = read(*a.next_node());
    write(*b.next_node(), 0, content);
    std::optional<uint64_t> expected;
    for (uint64_t i = random() % 4; i > 0; --i) {
      const uint64_t at = random() % b.info().size.v;
      if (at < kSize && content[at] != 0) continue;
      std::vector<char> sector(kSectorSize);
      const uint64_t start = align_down(at, kSectorSize);
      if (at < kSize)
        std::copy_n(content.begin() + static_cast<ptrdiff_t>(start), kSectorSize, sector.begin());
      sector[at - start] = 1;
      write(*b.next_node(), start, sector);
      if (at < kSize)
        std::copy_n(sector.begin(), kSectorSize, content.begin() + static_cast<ptrdiff_t>(start));
      expected = std::min(expected.value_or(at), at);
    }
    CompareOptions options;
    options.request_size = kPiece;
    CompareJob job(a, b, options);
    bool done = false;
    job.start([&](CompareJob::Answer answer) {
      ASSERT_TRUE(answer.ok());
      EXPECT_EQ(expected, *answer);
      done = true;
    });
    while (a.release(random) || b.release(random)) {
    }
    EXPECT_TRUE(done);
  }
}

}  // namespace
}  // namespace vbdkit::drivers
