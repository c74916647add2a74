// SPDX-License-Identifier: LGPL-2.1-or-later
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <random>

#include "drivers/allocation_count.h"
#include "drivers/cache/cache_filter.h"
#include "drivers/conformance.h"
#include "drivers/fault_filter.h"
#include "drivers/qcow2/create.h"

namespace vbdkit::drivers::cache {
namespace {

constexpr uint64_t kSize = 8 << 20;  // bytes

class CacheTest : public testing::Test {
 protected:
  CacheTest() {
    char name[] = "/var/tmp/vbdkit-cache-XXXXXX";
    EXPECT_NE(nullptr, mkdtemp(name));
    directory_ = name;
  }
  ~CacheTest() override {
    const std::string command = "rm -r " + directory_;
    EXPECT_EQ(0, system(command.c_str()));
  }

  std::string path(const std::string& name) const { return directory_ + "/" + name; }
  std::string store_path() const {
    return path("vbdkit-cache-" + std::to_string(geteuid()) + "-p");
  }

  std::shared_ptr<PageStore> store(uint64_t size = 2 << 20) const {
    auto pages = PageStore::open_shared(directory_, "p", size, log_);
    EXPECT_TRUE(pages.ok()) << pages.error().message();
    return pages ? std::move(pages).value() : nullptr;
  }

  static Page page_of(uint64_t image, uint64_t page) {
    std::mt19937_64 random(image << 32 | page);
    Page out;
    for (size_t i = 0; i < out.size(); i += 8) {
      const uint64_t word = random();
      memcpy(out.data() + i, &word, sizeof word);
    }
    return out;
  }

  // A file whose page n is page_of(1, n), and old enough to be known again.
  std::string make_image(const std::string& name) const {
    const auto fd = Fd::open(path(name), O_RDWR | O_CREAT, 0600);
    for (uint64_t i = 0; i < kSize / kPageSize; ++i) {
      const Page page = page_of(1, i);
      EXPECT_EQ(static_cast<ssize_t>(kPageSize),
                pwrite(fd->get(), page.data(), kPageSize, static_cast<off_t>(i * kPageSize)));
    }
    settle(path(name));
    return path(name);
  }
  // Until the clock that files are stamped with has gone on: a few milliseconds.
  static void settle(const std::string& file) {
    struct stat st {};
    EXPECT_EQ(0, stat(file.c_str(), &st));
    timespec now{};
    do {
      clock_gettime(CLOCK_REALTIME_COARSE, &now);
    } while (std::pair(now.tv_sec, now.tv_nsec) <=
             std::pair(st.st_ctim.tv_sec, st.st_ctim.tv_nsec));
  }

  NodePtr open(const std::string& spec, bool read_only) {
    auto node = open_graph(parse_graph(spec).value(),
                           {*reactor_, log_, {.read_only = read_only, .shared = read_only}});
    EXPECT_TRUE(node.ok()) << node.error().message();
    return node ? std::move(node).value() : nullptr;
  }
  std::string options() const {
    return "cache:size=16M,base=shared,pool=p,directory=" + directory_;
  }

  int run(Node& node, Op op, uint64_t offset, void* memory, uint64_t length) {
    struct Asked : Request {
      io::Reactor* reactor = nullptr;
      int error = -1;
    } request;
    iovec iov{memory, length};
    request.op = op;
    request.offset = offset;
    request.length = length;
    request.iov = &iov;
    request.iov_count = 1;
    request.reactor = reactor_.get();
    request.done = [](Request& r, int error) {
      static_cast<Asked&>(r).error = error;
      static_cast<Asked&>(r).reactor->stop();
    };
    node.submit(request);
    while (request.error < 0) EXPECT_TRUE(reactor_->run().ok());
    return request.error;
  }

  Logger log_{"test", LogLevel::kError};
  std::unique_ptr<io::Reactor> reactor_ = io::Reactor::create({}, log_).value();
  std::string directory_;
};

// Processes put in and take out pages of two images in a store that is much too small, and some are
// killed at any moment. Nobody ever finds a page that is not the right one.
TEST_F(CacheTest, ProcessesThatAreKilledLeaveNoWrongPage) {
  const auto keeper = store();
  const ImageKey images[] = {ImageKey::of("one"), ImageKey::of("two")};
  const auto work = [&](unsigned seed, int alive) {
    const auto pages = store();
    std::mt19937_64 random(seed);
    uint64_t found = 0;
    for (uint64_t i = 0; i < 20'000; ++i) {
      if (i == 1000) (void)!write(alive, "x", 1);
      const uint64_t image = random() % 2;
      const uint64_t first = random() % 1500;
      if (random() % 3 == 0) {
        std::vector<uint8_t> run;
        for (uint64_t n = 0; n < 1 + random() % 8; ++n) {
          const Page page = page_of(image, first + n);
          run.insert(run.end(), page.begin(), page.end());
        }
        pages->insert(images[image], first, run);
      } else {
        Page page;
        if (!pages->find(images[image], first, page)) continue;
        ++found;
        if (page != page_of(image, first)) return 1;
      }
    }
    return found > 0 ? 0 : 2;
  };
  std::vector<pid_t> children;
  for (unsigned i = 0; i < 9; ++i) {
    int ends[2];
    ASSERT_EQ(0, pipe2(ends, O_CLOEXEC));
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) _exit(work(i, ends[1]));
    close(ends[1]);
    if (i % 3 == 0) {
      char x;
      EXPECT_EQ(1, read(ends[0], &x, 1));
      kill(child, SIGKILL);
      waitpid(child, nullptr, 0);
    } else {
      children.push_back(child);
    }
    close(ends[0]);
  }
  for (const pid_t child : children) {
    int status = -1;
    EXPECT_EQ(child, waitpid(child, &status, 0));
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(0, WEXITSTATUS(status)) << "1: a wrong page; 2: never found one";
  }
}

TEST_F(CacheTest, TheOldestPagesGoFirstAndTheLastOnesAreThere) {
  const auto pages = PageStore::create_private(2 << 20).value();
  const ImageKey image = ImageKey::of("one");
  const uint64_t count = pages->slots() * 3;
  for (uint64_t i = 0; i < count; ++i) pages->insert(image, i, page_of(1, i));
  Page page;
  for (uint64_t i = 0; i < pages->slots(); ++i) EXPECT_FALSE(pages->find(image, i, page)) << i;
  uint64_t found = 0;
  for (uint64_t i = count - pages->slots() / 2; i < count; ++i)
    found += pages->find(image, i, page);
  EXPECT_GT(found, pages->slots() * 9 / 20) << "a few lose their place in a full bucket";
  EXPECT_FALSE(pages->find(ImageKey::of("two"), count - 1, page));
}

TEST_F(CacheTest, TheFileGoesWithItsLastUser) {
  auto first = store();
  auto second = store(4 << 20);
  EXPECT_EQ(first->slots(), second->slots()) << "the first has decided";
  first.reset();
  EXPECT_EQ(0, access(store_path().c_str(), F_OK));
  second.reset();
  EXPECT_NE(0, access(store_path().c_str(), F_OK));
}

TEST_F(CacheTest, AFileThatOthersMayWriteIsNotTrusted) {
  const auto fd = Fd::open(store_path(), O_RDWR | O_CREAT, 0600);
  ASSERT_EQ(0, fchmod(fd->get(), 0622));
  const auto pages = PageStore::open_shared(directory_, "p", 2 << 20, log_);
  ASSERT_FALSE(pages.ok());
  EXPECT_EQ(ErrorKind::kPermission, pages.error().kind());
}

TEST_F(CacheTest, WhatOneInstanceHasReadAnotherDoesNotRead) {
  const std::string spec = options() + "|raw:" + make_image("base");
  const NodePtr first = open(spec, true);
  const NodePtr second = open(spec, true);
  std::vector<uint8_t> memory(64 << 10);
  ASSERT_EQ(0, run(*first, Op::kRead, 128 << 10, memory.data(), memory.size()));
  const uint64_t before = reactor_->counters().file_ops;
  std::vector<uint8_t> again(60 << 10);
  ASSERT_EQ(0, run(*second, Op::kRead, (128 << 10) + 512, again.data(), again.size()));
  EXPECT_EQ(before, reactor_->counters().file_ops);
  EXPECT_TRUE(std::equal(again.begin(), again.end(), memory.begin() + 512));
  const Page expected = page_of(1, (128 << 10) / kPageSize);
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), memory.begin()));
}

TEST_F(CacheTest, AnImageThatWasChangedIsAnotherImage) {
  const std::string image = make_image("base");
  const std::string spec = options() + "|raw:" + image;
  const auto keeper = store(16 << 20);
  std::vector<uint8_t> memory(kPageSize);
  ASSERT_EQ(0, run(*open(spec, true), Op::kRead, 0, memory.data(), memory.size()));
  const Page other = page_of(7, 0);
  const auto fd = Fd::open(image, O_RDWR);
  ASSERT_EQ(static_cast<ssize_t>(kPageSize), pwrite(fd->get(), other.data(), kPageSize, 0));
  settle(image);
  ASSERT_EQ(0, run(*open(spec, true), Op::kRead, 0, memory.data(), memory.size()));
  EXPECT_TRUE(std::equal(other.begin(), other.end(), memory.begin()));
}

TEST_F(CacheTest, LeavesOfOneBaseShareWhatTheyReadOfItAndNothingElse) {
  qcow2::CreateOptions create;
  create.size = Bytes{kSize};
  create.backing_file = make_image("base");
  create.backing_format = "raw";
  for (const char* leaf : {"a", "b"}) ASSERT_TRUE(qcow2::create_image(path(leaf), create).ok());
  const NodePtr a = open(options() + "|qcow2:" + path("a"), false);
  const NodePtr b = open(options() + "|qcow2:" + path("b"), false);
  std::vector<uint8_t> memory(kPageSize);
  const Page mine = page_of(9, 9);
  std::copy(mine.begin(), mine.end(), memory.begin());
  ASSERT_EQ(0, run(*a, Op::kWrite, kPageSize, memory.data(), kPageSize));
  for (Node* node : {a.get(), b.get()}) {
    for (uint64_t page : {0, 1, 2}) {
      ASSERT_EQ(0, run(*node, Op::kRead, page * kPageSize, memory.data(), kPageSize));
      const Page expected = node == a.get() && page == 1 ? mine : page_of(1, page);
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), memory.begin())) << page;
    }
  }
  ASSERT_EQ(0, run(*a, Op::kRead, 4 << 20, memory.data(), kPageSize));
  ASSERT_EQ(0, run(*b, Op::kRead, 5 << 20, memory.data(), kPageSize));  // knows its map now
  const uint64_t before = reactor_->counters().file_ops;
  ASSERT_EQ(0, run(*b, Op::kRead, 4 << 20, memory.data(), kPageSize));
  EXPECT_EQ(before, reactor_->counters().file_ops);
}

TEST_F(CacheTest, AWritableDiskWithoutParentsHasNoSharedBase) {
  const auto node = open_graph(parse_graph(options() + "|raw:" + make_image("disk")).value(),
                               {*reactor_, log_, {}});
  ASSERT_FALSE(node.ok());
  EXPECT_NE(std::string::npos, node.error().message().find("has no parents and is not read-only"));
}

TEST_F(CacheTest, AHitAllocatesNothingAndAsksTheKernelForNothing) {
  const NodePtr node = open("cache:size=16M|raw:" + make_image("disk"), false);
  std::vector<uint8_t> memory(128 << 10);
  ASSERT_EQ(0, run(*node, Op::kRead, 0, memory.data(), memory.size()));
  const uint64_t allocations = allocation_count();
  const auto entries = reactor_->counters().kernel_entries;
  for (int i = 0; i < 100; ++i) run(*node, Op::kRead, 0, memory.data(), memory.size());
  EXPECT_EQ(allocations, allocation_count());
  EXPECT_EQ(entries, reactor_->counters().kernel_entries);
}

Subject cached(std::string name, const std::string& options) {
  return {.name = std::move(name),
          .create = storage_by_spec([options](const std::string& path, uint64_t) {
            return "cache:" + options + "|raw:" + path;
          })};
}

INSTANTIATE_TEST_SUITE_P(Cache, NodeConformance,
                         testing::Values(cached("Cache", "size=64M"),
                                         cached("CacheThatIsTooSmall", "size=2M")),
                         subject_name);

}  // namespace
}  // namespace vbdkit::drivers::cache
