// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What raw promises beyond the conformance suite: errors, locks, fallbacks and costs.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

#include "drivers/allocation_count.h"
#include "drivers/file_lock.h"
#include "drivers/loop_device.h"
#include "drivers/registry.h"

namespace vbdkit::drivers {
namespace {

constexpr uint64_t kSize = 1 << 20;

class RawTest : public testing::Test {
 protected:
  RawTest() : log_("test", LogLevel::kNotice, log_write()) {
    char dir[] = "/var/tmp/vbdkit-raw-XXXXXX";
    EXPECT_NE(nullptr, mkdtemp(dir));
    dir_ = dir;
    image_ = dir_ + "/a.img";
    make_file(image_, kSize);
    Logger quiet("test", LogLevel::kError);
    auto reactor = io::Reactor::create({}, quiet);
    EXPECT_TRUE(reactor.ok());
    reactor_ = std::move(reactor).value();
  }
  ~RawTest() override {
    const std::string command = "rm -r " + dir_;
    EXPECT_EQ(0, system(command.c_str()));
  }

  static void make_file(const std::string& path, uint64_t size) {
    Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_TRUE(fd.valid()) << path;
    ASSERT_EQ(0, ftruncate(fd.get(), static_cast<off_t>(size)));
  }

  Result<NodePtr> open(const std::string& spec, OpenOptions options = {}) {
    VBDKIT_ASSIGN(GraphSpec graph, parse_graph(spec));
    return open_graph(graph, {*reactor_, log_, options});
  }
  NodePtr open_ok(const std::string& spec, OpenOptions options = {}) {
    auto node = open(spec, options);
    EXPECT_TRUE(node.ok()) << node.error().message();
    return node ? std::move(node).value() : nullptr;
  }
  std::string error_of(const std::string& spec, OpenOptions options = {}) {
    auto node = open(spec, options);
    EXPECT_FALSE(node.ok()) << spec;
    return node ? std::string() : node.error().message();
  }

  // One request, to its end; its errno.
  int run(Node& node, Op op, uint64_t offset, std::string* data, uint64_t length = 0,
          uint8_t flags = 0) {
    struct Io {
      Request request;
      io::Reactor* reactor;
      int error = -1;
    } io;
    iovec vec{};
    if (data != nullptr) {
      vec = {data->data(), data->size()};
      io.request.iov = &vec;
      io.request.iov_count = 1;
      length = data->size();
    }
    io.reactor = reactor_.get();
    io.request.op = op;
    io.request.flags = flags;
    io.request.offset = offset;
    io.request.length = length;
    io.request.done = [](Request& r, int error) {
      auto& self = reinterpret_cast<Io&>(r);
      self.error = error;
      self.reactor->stop();
    };
    node.submit(io.request);
    EXPECT_TRUE(reactor_->run().ok());
    return io.error;
  }

  std::string logged() {
    char text[4096];
    const ssize_t n = ::read(log_read_.get(), text, sizeof text);
    return n > 0 ? std::string(text, static_cast<size_t>(n)) : std::string();
  }
  static uint64_t blocks_of(const std::string& path) {
    struct stat st {};
    EXPECT_EQ(0, stat(path.c_str(), &st));
    return static_cast<uint64_t>(st.st_blocks);
  }

  std::string dir_;
  std::string image_;
  std::unique_ptr<io::Reactor> reactor_;

 private:
  int log_write() {
    int ends[2];
    EXPECT_EQ(0, pipe2(ends, O_CLOEXEC | O_NONBLOCK));
    log_read_ = Fd(ends[0]);
    log_write_ = Fd(ends[1]);
    return ends[1];
  }
  Fd log_read_;
  Fd log_write_;

 protected:
  Logger log_;
};

TEST_F(RawTest, AnErrorNamesThePathAndTheReason) {
  EXPECT_EQ("raw: open /nonexistent/a.img: No such file or directory",
            error_of("raw:/nonexistent/a.img"));
  EXPECT_EQ("raw: open " + dir_ + ": Is a directory", error_of("raw:" + dir_));
  EXPECT_EQ("raw: open " + dir_ + ": Is a directory", error_of("raw:" + dir_, {.read_only = true}));
  EXPECT_EQ("raw: open /dev/null: neither a regular file nor a block device",
            error_of("raw,direct=off:/dev/null"));
  make_file(dir_ + "/small", 511);
  EXPECT_EQ("raw: " + dir_ + "/small: smaller than one sector (511 bytes)",
            error_of("raw:" + dir_ + "/small"));
  EXPECT_EQ("raw: align=1000: expected a power of two from 512 to 64K",
            error_of("raw,align=1000:" + image_));
  EXPECT_EQ("raw: direct=yes: expected on or off", error_of("raw,direct=yes:" + image_));
}

TEST_F(RawTest, AFifoIsRefusedWithoutWaitingForItsOtherEnd) {
  const std::string fifo = dir_ + "/fifo";
  ASSERT_EQ(0, mkfifo(fifo.c_str(), 0600));
  EXPECT_EQ("raw: open " + fifo + ": neither a regular file nor a block device",
            error_of("raw,direct=off:" + fifo, {.read_only = true}));
}

TEST_F(RawTest, ATailThatIsNoSectorIsNotPartOfTheDiskAndTheLogSaysSo) {
  const std::string path = dir_ + "/odd";
  make_file(path, kSize + 700);
  NodePtr node = open_ok("raw:" + path);
  EXPECT_EQ(kSize + 512, node->info().size.v);
  EXPECT_NE(std::string::npos, logged().find("its last 188 bytes are no whole sector"));
  std::string data(512, 'x');
  EXPECT_EQ(0, run(*node, Op::kWrite, kSize, &data));
  EXPECT_EQ(EINVAL, run(*node, Op::kWrite, kSize + 512, &data));
  struct stat st {};
  ASSERT_EQ(0, stat(path.c_str(), &st));
  EXPECT_EQ(static_cast<off_t>(kSize + 700), st.st_size);
}

// The last block could be written directly only by making the file longer.
TEST_F(RawTest, ASizeThatDirectIoCannotReachIsServedFromThePageCache) {
  const std::string path = dir_ + "/tail";
  make_file(path, kSize + 512);
  NodePtr node = open_ok("raw,align=4K:" + path);
  EXPECT_NE(std::string::npos, logged().find("using the page cache"));
  std::string data(512, 'x');
  EXPECT_EQ(0, run(*node, Op::kWrite, kSize, &data));
  std::string back(512, ' ');
  EXPECT_EQ(0, run(*node, Op::kRead, kSize, &back));
  EXPECT_EQ(data, back);
  struct stat st {};
  ASSERT_EQ(0, stat(path.c_str(), &st));
  EXPECT_EQ(static_cast<off_t>(kSize + 512), st.st_size);
}

TEST_F(RawTest, TwoWritersAreImpossibleAndReadersKeepWritersOut) {
  NodePtr writer = open_ok("raw:" + image_);
  EXPECT_EQ("raw: lock " + image_ + ": in use by this process", error_of("raw:" + image_));
  EXPECT_EQ(ErrorKind::kBusy, open("raw:" + image_, {.read_only = true}).error().kind());
  EXPECT_EQ(ErrorKind::kBusy, open("raw:" + image_, {.shared = true}).error().kind());
  writer.reset();
  NodePtr reader = open_ok("raw:" + image_, {.read_only = true});
  NodePtr second = open_ok("raw:" + image_, {.read_only = true});
  EXPECT_EQ(ErrorKind::kBusy, open("raw:" + image_).error().kind());
  EXPECT_EQ(ErrorKind::kBusy, open("raw:" + image_, {.shared = true}).error().kind());
  second.reset();
  EXPECT_EQ(ErrorKind::kBusy, open("raw:" + image_).error().kind());
  reader.reset();
  EXPECT_TRUE(open("raw:" + image_).ok());
}

TEST_F(RawTest, WhoSharesMayWriteTogetherAndLockingOffAsksNobody) {
  NodePtr first = open_ok("raw:" + image_, {.shared = true});
  NodePtr second = open_ok("raw:" + image_, {.shared = true});
  NodePtr reader = open_ok("raw:" + image_, {.read_only = true, .shared = true});
  EXPECT_EQ(ErrorKind::kBusy, open("raw:" + image_).error().kind());
  EXPECT_EQ(ErrorKind::kBusy, open("raw:" + image_, {.read_only = true}).error().kind());
  EXPECT_TRUE(open("raw,locking=off:" + image_).ok());
}

TEST_F(RawTest, ALockErrorNamesTheProcessThatIsInTheWay) {
  int held[2];
  int release[2];
  ASSERT_EQ(0, pipe2(held, O_CLOEXEC));
  ASSERT_EQ(0, pipe2(release, O_CLOEXEC));
  const pid_t child = fork();
  if (child == 0) {
    const int fd = ::open(image_.c_str(), O_RDWR | O_CLOEXEC);
    const char ok = lock_image(fd, image_, LockMode::kWriter).ok();
    char c;
    if (::write(held[1], &ok, 1) != 1 || ::read(release[0], &c, 1) != 1) _exit(1);
    _exit(0);
  }
  char ok = 0;
  ASSERT_EQ(1, ::read(held[0], &ok, 1));
  ASSERT_EQ(1, ok);
  const std::string error = error_of("raw:" + image_);
  EXPECT_EQ(1, ::write(release[1], "x", 1));
  EXPECT_EQ(child, waitpid(child, nullptr, 0));
  EXPECT_EQ(0u, error.find("raw: lock " + image_ + ": in use by process " + std::to_string(child)))
      << error;
}

// QEMU's own locks and ours agree. qemu-io waits for its next command meanwhile.
class RawBesideQemu : public RawTest {
 protected:
  void SetUp() override {
    if (system("qemu-io --version >/dev/null 2>&1") != 0) GTEST_SKIP() << "qemu-io is missing";
  }
  // Whether QEMU could open and read it.
  bool qemu_reads(const std::string& options) const {
    const std::string command =
        "qemu-io -f raw " + options + " -c 'read 0 512' " + image_ + " >/dev/null 2>&1";
    return system(command.c_str()) == 0;
  }
  bool open_while_qemu_has_it(const std::string& options, OpenOptions ours) {
    const std::string fifo = dir_ + "/out";
    mkfifo(fifo.c_str(), 0600);
    const std::string command = "qemu-io -f raw " + options + " " + image_ + " >" + fifo;
    FILE* qemu = popen(command.c_str(), "we");
    FILE* out = fopen(fifo.c_str(), "re");
    fputs("length\n", qemu);
    fflush(qemu);
    char line[128];
    EXPECT_NE(nullptr, fgets(line, sizeof line, out));  // it has the image open now
    const bool ok = open("raw:" + image_, ours).ok();
    EXPECT_EQ(0, pclose(qemu));
    fclose(out);
    unlink(fifo.c_str());
    return ok;
  }
};

TEST_F(RawBesideQemu, OurWriterKeepsQemuOutAndOurReaderLetsItRead) {
  EXPECT_TRUE(qemu_reads(""));
  NodePtr node = open_ok("raw:" + image_);
  EXPECT_FALSE(qemu_reads(""));
  EXPECT_FALSE(qemu_reads("-r"));
  node.reset();
  node = open_ok("raw:" + image_, {.read_only = true});
  EXPECT_FALSE(qemu_reads(""));
  EXPECT_TRUE(qemu_reads("-r"));
}

TEST_F(RawBesideQemu, ItsWriterKeepsUsOutAndItsReaderLetsUsRead) {
  EXPECT_FALSE(open_while_qemu_has_it("", {}));
  EXPECT_FALSE(open_while_qemu_has_it("", {.read_only = true}));
  EXPECT_FALSE(open_while_qemu_has_it("-r", {}));
  EXPECT_TRUE(open_while_qemu_has_it("-r", {.read_only = true}));
}

TEST_F(RawTest, AReopenForWritingThatIsRefusedLeavesTheNodeAsItWas) {
  NodePtr node = open_ok("raw:" + image_, {.read_only = true});
  NodePtr other = open_ok("raw:" + image_, {.read_only = true});
  auto reopened = node->reopen(false);
  ASSERT_FALSE(reopened.ok());
  EXPECT_EQ(ErrorKind::kBusy, reopened.error().kind());
  EXPECT_TRUE(node->info().read_only);
  std::string data(512, 'x');
  EXPECT_EQ(0, run(*node, Op::kRead, 0, &data));
  other.reset();
  // It still holds its own lock.
  EXPECT_EQ(ErrorKind::kBusy, open("raw:" + image_).error().kind());
  EXPECT_TRUE(node->reopen(false).ok());
  EXPECT_EQ(0, run(*node, Op::kWrite, 0, &data));
}

TEST_F(RawTest, AReopenRefusesAnotherFileOfTheSameName) {
  NodePtr node = open_ok("raw:" + image_);
  make_file(dir_ + "/b.img", kSize);
  ASSERT_EQ(0, rename((dir_ + "/b.img").c_str(), image_.c_str()));
  auto reopened = node->reopen(true);
  ASSERT_FALSE(reopened.ok());
  EXPECT_EQ("raw: reopen " + image_ + ": it is another file by now", reopened.error().message());
}

TEST_F(RawTest, AFileTruncatedBeneathFailsItsRequestsAndItsNewSizeCanBeTaken) {
  NodePtr node = open_ok("raw:" + image_);
  ASSERT_EQ(0, truncate(image_.c_str(), kSize / 2));
  std::string data(8192, 'x');
  EXPECT_EQ(0, run(*node, Op::kRead, 0, &data));
  EXPECT_EQ(EIO, run(*node, Op::kRead, kSize / 2 - 4096, &data));
  EXPECT_EQ(EIO, run(*node, Op::kRead, kSize - 8192, &data));
  ASSERT_TRUE(node->refresh_size().ok());
  EXPECT_EQ(kSize / 2, node->info().size.v);
  ASSERT_EQ(0, truncate(image_.c_str(), kSize * 2));
  ASSERT_TRUE(node->refresh_size().ok());
  EXPECT_EQ(kSize * 2, node->info().size.v);
}

TEST_F(RawTest, DiscardGivesStorageBackAndZeroesMayKeepIt) {
  NodePtr node = open_ok("raw:" + image_);
  if (!node->info().can_discard) GTEST_SKIP() << "this file system cannot punch holes";
  std::string data(kSize, 'x');
  ASSERT_EQ(0, run(*node, Op::kWrite, 0, &data, 0, kFua));
  const uint64_t full = blocks_of(image_);
  EXPECT_EQ(0, run(*node, Op::kWriteZeroes, 0, nullptr, kSize / 2));
  EXPECT_EQ(full, blocks_of(image_));
  EXPECT_EQ(0, run(*node, Op::kWriteZeroes, 0, nullptr, kSize / 2, kMayUnmap));
  EXPECT_EQ(full / 2, blocks_of(image_));
  EXPECT_EQ(0, run(*node, Op::kDiscard, kSize / 2, nullptr, kSize / 2));
  EXPECT_EQ(0u, blocks_of(image_));
}

TEST_F(RawTest, WithoutDiscardStorageIsKept) {
  NodePtr node = open_ok("raw,discard=off:" + image_);
  std::string data(kSize, 'x');
  ASSERT_EQ(0, run(*node, Op::kWrite, 0, &data, 0, kFua));
  const uint64_t full = blocks_of(image_);
  EXPECT_EQ(EOPNOTSUPP, run(*node, Op::kDiscard, 0, nullptr, kSize));
  EXPECT_EQ(0, run(*node, Op::kWriteZeroes, 0, nullptr, kSize, kMayUnmap));
  EXPECT_EQ(full, blocks_of(image_));
}

TEST_F(RawTest, ABlockDeviceOfLargeSectorsSaysSoAndCannotBeResized) {
  Fd backing(::open(image_.c_str(), O_RDWR | O_CLOEXEC));
  auto device = LoopDevice::create(backing.get(), 4096);
  if (!device.ok()) GTEST_SKIP() << device.error().message();
  NodePtr node = open_ok("raw:" + device->path());
  EXPECT_EQ(kSize, node->info().size.v);
  EXPECT_EQ(4096u, node->info().logical_block);
  EXPECT_EQ(4096u, node->info().request_alignment);
  auto resized = node->resize(Bytes{kSize * 2});
  ASSERT_FALSE(resized.ok());
  EXPECT_EQ(ErrorKind::kUnsupported, resized.error().kind());
  // The kernel's own claim: what a guest writes cannot be mounted here.
  Fd exclusive(::open(device->path().c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
  EXPECT_FALSE(exclusive.valid());
  EXPECT_EQ(ErrorKind::kBusy, open("raw:" + device->path()).error().kind());
  node.reset();
  exclusive = Fd(::open(device->path().c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
  EXPECT_TRUE(exclusive.valid());
  const std::string error = error_of("raw:" + device->path());
  EXPECT_EQ("raw: open " + device->path() + ": the device is mounted, or part of another device",
            error);
}

TEST_F(RawTest, AlignedRequestsAllocateNothingAndEnterTheKernelOncePerTurn) {
  constexpr size_t kDepth = 32;
  constexpr int kRounds = 20;
  NodePtr node = open_ok("raw:" + image_);
  struct Load {
    struct Io {
      Request request;
      Load* load;
      iovec vec;
    };
    Io ios[kDepth];
    Node* node;
    io::Reactor* reactor;
    size_t left = kDepth;
    int rounds = 0;
    uint64_t allocations = 0;
    uint64_t entries = 0;

    // The first round warms up.
    void next_round() {
      if (rounds == 1) {
        allocations = allocation_count();
        entries = reactor->counters().kernel_entries;
      }
      if (rounds++ == kRounds) {
        allocations = allocation_count() - allocations;
        entries = reactor->counters().kernel_entries - entries;
        reactor->stop();
        return;
      }
      left = kDepth;
      for (Io& io : ios) node->submit(io.request);
    }
  } load;
  load.node = node.get();
  load.reactor = reactor_.get();
  auto* memory = static_cast<char*>(aligned_alloc(4096, kDepth * 4096));
  memset(memory, 'x', kDepth * 4096);
  for (size_t i = 0; i < kDepth; ++i) {
    Load::Io& io = load.ios[i];
    io.load = &load;
    io.vec = {memory + i * 4096, 4096};
    io.request.op = i % 2 == 0 ? Op::kRead : Op::kWrite;
    io.request.iov = &io.vec;
    io.request.iov_count = 1;
    io.request.offset = i * 4096;
    io.request.length = 4096;
    io.request.done = [](Request& r, int error) {
      EXPECT_EQ(0, error);
      Load& l = *reinterpret_cast<Load::Io&>(r).load;
      if (--l.left == 0) l.next_round();
    };
  }
  load.next_round();
  ASSERT_TRUE(reactor_->run().ok());
  free(memory);
  EXPECT_EQ(0u, load.allocations);
  // A disk may complete one by one, so that the loop turns more often; never once per request more.
  EXPECT_LE(load.entries, kDepth * kRounds);
}

}  // namespace
}  // namespace vbdkit::drivers
