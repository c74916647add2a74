// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The server as a well-behaved client sees it: libnbd over the socket, real drivers below.
#include "backend/nbd/server.h"

#include <gtest/gtest.h>
#include <libnbd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <map>

#include "backend/nbd/test_server.h"

namespace vbdkit::nbd {
namespace {

class Client {
 public:
  explicit Client(const TestServer& server, bool structured = true, std::string_view name = "")
      : h_(nbd_create()) {
    nbd_set_request_structured_replies(h_, structured);
    if (structured) nbd_add_meta_context(h_, LIBNBD_CONTEXT_BASE_ALLOCATION);
    if (!name.empty()) nbd_set_export_name(h_, std::string(name).c_str());
    // Wrong requests shall reach the server.
    nbd_set_strict_mode(h_, 0);
    connected_ = nbd_connect_unix(h_, server.path().c_str()) == 0;
  }
  ~Client() { nbd_close(h_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  bool connected() const { return connected_; }
  nbd_handle* h() const { return h_; }

  std::string read(uint64_t offset, size_t n, uint32_t flags = 0) {
    std::string s(n, '\xee');
    EXPECT_EQ(nbd_pread(h_, s.data(), n, offset, flags), 0) << nbd_get_error();
    return s;
  }
  // 0, or the errno.
  int write(uint64_t offset, std::string_view data, uint32_t flags = 0) {
    return nbd_pwrite(h_, data.data(), data.size(), offset, flags) == 0 ? 0 : nbd_get_errno();
  }

 private:
  nbd_handle* h_;
  bool connected_ = false;
};

constexpr const char* kRam = "ram,size=16M";

// Simple and structured replies carry everything alike.
class NbdServer : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Replies, NbdServer, testing::Bool(),
                         [](const auto& p) { return p.param ? "Structured" : "Simple"; });

TEST_P(NbdServer, KeepsWhatIsWritten) {
  TestServer server(kRam, {});
  Client c(server, GetParam());
  ASSERT_TRUE(c.connected()) << nbd_get_error();
  EXPECT_EQ(nbd_get_structured_replies_negotiated(c.h()), GetParam());
  EXPECT_EQ(nbd_get_size(c.h()), 16 << 20);
  // Sizes around the borders between one receive, two, and the direct way of large writes.
  for (size_t n :
       {512u, 4096u, 65536u, 131072u, 262144u - 512, 262144u + 512, 1u << 20, 8u << 20}) {
    std::string data(n, '\0');
    for (size_t i = 0; i < n; ++i) data[i] = static_cast<char>(i * 131 + n);
    ASSERT_EQ(c.write(512, data), 0);
    EXPECT_TRUE(c.read(512, n) == data) << n;
  }
  EXPECT_EQ(c.read(0, 512), std::string(512, '\0'));
  EXPECT_EQ(server.stats().errors, 0u);
}

TEST_P(NbdServer, ErrorsLeaveTheConnectionUsable) {
  TestServer server(kRam, {});
  Client c(server, GetParam());
  ASSERT_TRUE(c.connected());
  const std::string block(4096, 'x');
  EXPECT_EQ(c.write(16 << 20, block), ENOSPC);
  EXPECT_EQ(c.write((16 << 20) - 512, block), ENOSPC);
  char out[4096];
  EXPECT_EQ(nbd_pread(c.h(), out, sizeof out, 16 << 20, 0), -1);
  EXPECT_EQ(nbd_get_errno(), EINVAL);
  EXPECT_EQ(nbd_trim(c.h(), 4096, 16 << 20, 0), -1);
  EXPECT_EQ(nbd_get_errno(), EINVAL);
  EXPECT_EQ(c.write(0, block), 0);
  EXPECT_EQ(c.read(0, 4096), block);
  EXPECT_EQ(server.stats().errors, 4u);
}

TEST_P(NbdServer, AnswersManyInFlightEachWithItsOwn) {
  TestServer server(kRam, {.max_requests = 8});
  Client c(server, GetParam());
  ASSERT_TRUE(c.connected());
  constexpr size_t kBlocks = 200;
  std::vector<std::string> in(kBlocks);
  std::vector<std::string> out(kBlocks, std::string(8192, '\0'));
  for (size_t i = 0; i < kBlocks; ++i) in[i].assign(8192, static_cast<char>('A' + i % 26));
  for (size_t i = 0; i < kBlocks; ++i)
    ASSERT_GE(nbd_aio_pwrite(c.h(), in[i].data(), 8192, i * 8192, NBD_NULL_COMPLETION, 0), 0);
  while (nbd_aio_in_flight(c.h()) > 0) ASSERT_GE(nbd_poll(c.h(), -1), 0);
  for (size_t i = 0; i < kBlocks; ++i)
    ASSERT_GE(nbd_aio_pread(c.h(), out[i].data(), 8192, i * 8192, NBD_NULL_COMPLETION, 0), 0);
  while (nbd_aio_in_flight(c.h()) > 0) ASSERT_GE(nbd_poll(c.h(), -1), 0);
  EXPECT_TRUE(in == out);
  EXPECT_EQ(server.stats().bytes_written, kBlocks * 8192);
}

TEST(NbdServerCommands, ZeroesTrimsFlushesAndCaches) {
  TestServer server(kRam, {});
  Client c(server);
  ASSERT_TRUE(c.connected());
  const std::string data(256 << 10, 'd');
  ASSERT_EQ(c.write(0, data, LIBNBD_CMD_FLAG_FUA), 0);
  EXPECT_EQ(nbd_zero(c.h(), 4096, 0, 0), 0);
  EXPECT_EQ(nbd_zero(c.h(), 4096, 8192, LIBNBD_CMD_FLAG_NO_HOLE | LIBNBD_CMD_FLAG_FUA), 0);
  EXPECT_EQ(nbd_zero(c.h(), 4096, 16384, LIBNBD_CMD_FLAG_FAST_ZERO), 0);
  EXPECT_EQ(nbd_trim(c.h(), 65536, 65536, LIBNBD_CMD_FLAG_FUA), 0);
  EXPECT_EQ(nbd_flush(c.h(), 0), 0);
  EXPECT_EQ(nbd_cache(c.h(), 16 << 20, 0, 0), 0);  // more than one step
  EXPECT_EQ(c.read(0, 4096), std::string(4096, '\0'));
  EXPECT_EQ(c.read(4096, 4096), std::string(4096, 'd'));
  EXPECT_EQ(c.read(8192, 4096), std::string(4096, '\0'));
  EXPECT_EQ(c.read(16384, 4096), std::string(4096, '\0'));
  EXPECT_EQ(c.read(65536, 65536), std::string(65536, '\0'));
  EXPECT_EQ(c.read(131072, 4096, LIBNBD_CMD_FLAG_DF), std::string(4096, 'd'));
  EXPECT_EQ(server.stats().flushes, 1u);
}

TEST(NbdServerCommands, AdvertisesWhatTheDiskCan) {
  TestServer server(kRam, {});
  Client c(server);
  ASSERT_TRUE(c.connected());
  EXPECT_EQ(nbd_can_flush(c.h()), 1);
  EXPECT_EQ(nbd_can_fua(c.h()), 1);
  EXPECT_EQ(nbd_can_trim(c.h()), 1);
  EXPECT_EQ(nbd_can_zero(c.h()), 1);
  EXPECT_EQ(nbd_can_fast_zero(c.h()), 1);
  EXPECT_EQ(nbd_can_cache(c.h()), 1);
  EXPECT_EQ(nbd_can_df(c.h()), 1);
  EXPECT_EQ(nbd_can_multi_conn(c.h()), 1);
  EXPECT_EQ(nbd_is_read_only(c.h()), 0);
  EXPECT_EQ(nbd_get_block_size(c.h(), LIBNBD_SIZE_PREFERRED), 4096);
  EXPECT_EQ(nbd_get_block_size(c.h(), LIBNBD_SIZE_MAXIMUM), 32 << 20);
}

TEST(NbdServerCommands, ReadOnlyRefusesWritesWithEperm) {
  TestServer server(kRam, {.read_only = true});
  Client c(server);
  ASSERT_TRUE(c.connected());
  EXPECT_EQ(nbd_is_read_only(c.h()), 1);
  EXPECT_EQ(nbd_can_trim(c.h()), 0);
  EXPECT_EQ(c.write(0, std::string(4096, 'x')), EPERM);
  EXPECT_EQ(nbd_trim(c.h(), 4096, 0, 0), -1);
  EXPECT_EQ(nbd_get_errno(), EPERM);
  EXPECT_EQ(nbd_zero(c.h(), 4096, 0, 0), -1);
  EXPECT_EQ(nbd_get_errno(), EPERM);
  EXPECT_EQ(c.read(0, 4096), std::string(4096, '\0'));
}

TEST(NbdServerCommands, UnalignedRequestsAreInvalidWhereTheDiskWantsAlignment) {
  HoldingSink sink(1 << 20);
  TestServer server(sink, {});
  Client c(server);
  ASSERT_TRUE(c.connected());
  EXPECT_EQ(nbd_get_block_size(c.h(), LIBNBD_SIZE_MINIMUM), 512);
  char out[600];
  EXPECT_EQ(nbd_pread(c.h(), out, 600, 0, 0), -1);
  EXPECT_EQ(nbd_get_errno(), EINVAL);
  EXPECT_EQ(nbd_pwrite(c.h(), out, 512, 1, 0), -1);
  EXPECT_EQ(nbd_get_errno(), EINVAL);
  EXPECT_EQ(sink.submitted, 0u);
}

struct Descriptors {
  std::vector<std::pair<uint32_t, uint32_t>> list;  // length, state
  static int add(void* self, const char*, uint64_t, uint32_t* entries, size_t n, int*) {
    for (size_t i = 0; i + 1 < n; i += 2)
      static_cast<Descriptors*>(self)->list.emplace_back(entries[i], entries[i + 1]);
    return 0;
  }
  nbd_extent_callback callback() {
    nbd_extent_callback cb{};
    cb.callback = add;
    cb.user_data = this;
    return cb;
  }
};

TEST(NbdServerStatus, TellsHolesFromData) {
  TestServer server(kRam, {});
  Client c(server);
  ASSERT_TRUE(c.connected());
  ASSERT_EQ(nbd_can_meta_context(c.h(), LIBNBD_CONTEXT_BASE_ALLOCATION), 1);
  ASSERT_EQ(c.write(1 << 20, std::string(1 << 20, 'x')), 0);
  const uint32_t hole = LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO;

  Descriptors all;
  ASSERT_EQ(nbd_block_status(c.h(), 16 << 20, 0, all.callback(), 0), 0) << nbd_get_error();
  const std::vector<std::pair<uint32_t, uint32_t>> expected = {
      {1 << 20, hole}, {1 << 20, 0}, {14 << 20, hole}};
  EXPECT_EQ(all.list, expected);

  Descriptors one;
  ASSERT_EQ(nbd_block_status(c.h(), 65536, 0, one.callback(), LIBNBD_CMD_FLAG_REQ_ONE), 0);
  ASSERT_EQ(one.list.size(), 1u);
  EXPECT_EQ(one.list[0], std::make_pair(65536u, hole));

  Descriptors beyond;
  EXPECT_EQ(nbd_block_status(c.h(), 65536, 16 << 20, beyond.callback(), 0), -1);
  EXPECT_EQ(nbd_get_errno(), EINVAL);
}

// The answer to one question has a chunk for each context that was selected.
TEST(NbdServerStatus, TellsChangesBesideHoles) {
  char path[] = "/var/tmp/vbdkit-cbt-XXXXXX";
  const Fd file(mkostemp(path, O_CLOEXEC));
  {
    TestServer server("cbt:name=backup,file=" + std::string(path) + "|" + kRam, {});
    const std::unique_ptr<nbd_handle, void (*)(nbd_handle*)> h(nbd_create(), nbd_close);
    nbd_add_meta_context(h.get(), LIBNBD_CONTEXT_BASE_ALLOCATION);
    nbd_add_meta_context(h.get(), "qemu:dirty-bitmap:backup");
    ASSERT_EQ(nbd_connect_unix(h.get(), server.path().c_str()), 0) << nbd_get_error();
    ASSERT_EQ(nbd_zero(h.get(), 65536, 1 << 20, 0), 0);
    std::map<std::string, std::vector<uint32_t>> found;
    const nbd_extent_callback callback{
        [](void* data, const char* context, uint64_t, uint32_t* entries, size_t n, int*) {
          (*static_cast<decltype(found)*>(data))[context].assign(entries, entries + n);
          return 0;
        },
        &found, nullptr};
    ASSERT_EQ(nbd_block_status(h.get(), 2 << 20, 0, callback, 0), 0) << nbd_get_error();
    EXPECT_EQ(found["qemu:dirty-bitmap:backup"],
              (std::vector<uint32_t>{1 << 20, 0, 65536, 1, (1 << 20) - 65536, 0}));
    EXPECT_EQ(found[LIBNBD_CONTEXT_BASE_ALLOCATION],
              (std::vector<uint32_t>{2 << 20, LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO}));
  }
  unlink(path);
}

TEST(NbdServerConnections, SeeEachOthersWrites) {
  TestServer server(kRam, {});
  Client a(server);
  Client b(server, false);
  ASSERT_TRUE(a.connected() && b.connected());
  const std::string data(4096, 'q');
  ASSERT_EQ(a.write(8192, data), 0);
  EXPECT_EQ(b.read(8192, 4096), data);
  ASSERT_EQ(nbd_flush(b.h(), 0), 0);
  EXPECT_EQ(server.stats().connections, 2u);
}

TEST(NbdServerConnections, MoreThanTheLimitWaitForAPlace) {
  TestServer server(kRam, {.max_connections = 2});
  auto first = std::make_unique<Client>(server);
  Client second(server);
  ASSERT_TRUE(first->connected() && second.connected());
  std::atomic<bool> in{false};
  std::thread third([&] {
    Client c(server);
    EXPECT_TRUE(c.connected());
    in = true;
  });
  // The third hangs in the listen queue: nothing of it is accepted while both places are taken.
  EXPECT_EQ(second.read(0, 512), std::string(512, '\0'));
  EXPECT_EQ(server.stats().accepted, 2u);
  EXPECT_FALSE(in);
  first.reset();
  third.join();
  EXPECT_TRUE(in);
}

TEST(NbdServerConnections, AskForAnExportByName) {
  TestServer server(kRam, {.export_name = "disk"});
  EXPECT_TRUE(Client(server, true, "disk").connected());
  EXPECT_TRUE(Client(server).connected());
  EXPECT_FALSE(Client(server, true, "other").connected());
}

TEST(NbdServerGrowth, IsSeenByNewClientsAndServedToOldOnes) {
  HoldingSink sink(1 << 20);
  TestServer server(sink, {});
  Client before(server);
  ASSERT_EQ(nbd_get_size(before.h()), 1 << 20);
  server.on_loop([&] { sink.info_.size = Bytes{2 << 20}; });
  Client after(server);
  EXPECT_EQ(nbd_get_size(after.h()), 2 << 20);
  std::string out(512, '\0');
  ASSERT_GE(nbd_aio_pread(before.h(), out.data(), 512, 1 << 20, NBD_NULL_COMPLETION, 0), 0);
  EXPECT_TRUE(eventually([&] { return sink.submitted == 1; }));
  server.on_loop([&] { sink.release(0); });
}

TEST(NbdServerSocket, IsPrivateAndLeavesWithTheServer) {
  TempDir dir;
  const std::string path = dir.file("s");
  const mode_t old = ::umask(0);
  {
    TestServer server(kRam, {.path = path});
    ::umask(old);
    struct stat st {};
    ASSERT_EQ(::stat(path.c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 07777, 0600u);
    server.shutdown().wait();
    EXPECT_NE(::access(path.c_str(), F_OK), 0);
  }
}

class NbdServerPath : public testing::Test {
 protected:
  Result<std::unique_ptr<Server>> create(const std::string& path) {
    return Server::create(*reactor_, sink_, sink_, {.path = path}, log_);
  }
  TempDir dir_;
  Logger log_{"test", LogLevel::kError};
  std::unique_ptr<io::Reactor> reactor_ = std::move(io::Reactor::create({}, log_)).value();
  HoldingSink sink_{1 << 20};
};

TEST_F(NbdServerPath, IsNotTakenFromALivingServer) {
  TestServer living(kRam, {});
  const auto second = create(living.path());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().kind(), ErrorKind::kBusy);
  EXPECT_TRUE(Client(living).connected());
}

TEST_F(NbdServerPath, IsTakenFromADeadOne) {
  const std::string path = dir_.file("s");
  {
    // Bound, never listening any more: what a killed process leaves.
    TestServer killed(kRam, {.path = path});
    ASSERT_EQ(::rename(path.c_str(), dir_.file("kept").c_str()), 0);
  }
  ASSERT_EQ(::rename(dir_.file("kept").c_str(), path.c_str()), 0);
  TestServer server(kRam, {.path = path});
  EXPECT_TRUE(Client(server).connected());
}

// The kernel keeps a killed process's socket connectable until its io_uring is gone.
TEST_F(NbdServerPath, IsTakenFromOneThatHangsUpInsteadOfGreeting) {
  const std::string path = dir_.file("s");
  Fd dying(::socket(AF_UNIX, SOCK_STREAM, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  ASSERT_EQ(::bind(dying.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(dying.get(), 1), 0);
  std::thread end([&] {
    Fd probe(::accept(dying.get(), nullptr, nullptr));
    dying.reset();
  });
  const auto server = create(path);
  EXPECT_TRUE(server.ok()) << server.error().message();
  end.join();
}

TEST_F(NbdServerPath, IsNotTakenFromWhatIsNoSocket) {
  const std::string path = dir_.file("precious");
  std::ofstream(path) << "data";
  const auto server = create(path);
  ASSERT_FALSE(server.ok());
  EXPECT_NE(server.error().message().find(path + ": exists and is not a socket"),
            std::string::npos);
  std::string content;
  std::ifstream(path) >> content;
  EXPECT_EQ(content, "data");
}

TEST_F(NbdServerPath, MustFitAndExist) {
  EXPECT_FALSE(create(std::string(200, 'x')).ok());
  EXPECT_FALSE(create("").ok());
  const auto server = create(dir_.file("no/such/dir/s"));
  ASSERT_FALSE(server.ok());
  EXPECT_EQ(server.error().kind(), ErrorKind::kNotFound);
}

TEST(NbdServerShutdown, AnswersWhatIsInFlightAndTakesNoMore) {
  HoldingSink sink(1 << 20);
  TestServer server(sink, {});
  RawClient c(server.path());
  c.enter();
  c.request(Command::kFlush, 0, 0, 7);
  ASSERT_TRUE(eventually([&] { return sink.submitted == 1; }));
  auto down = server.shutdown();
  server.on_loop([] {});
  c.request(Command::kFlush, 0, 0, 8);
  EXPECT_EQ(down.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
  server.on_loop([&] { sink.release(0); });
  uint64_t cookie = 0;
  EXPECT_EQ(c.reply(&cookie), 0);
  EXPECT_EQ(cookie, 7u);
  EXPECT_TRUE(c.closed());
  down.wait();
  EXPECT_EQ(sink.submitted, 1u);
}

}  // namespace
}  // namespace vbdkit::nbd
