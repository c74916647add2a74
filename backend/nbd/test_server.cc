// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/nbd/test_server.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>

namespace vbdkit::nbd {

TempDir::TempDir() {
  const char* base = std::getenv("TMPDIR");
  path_ = std::string(base != nullptr ? base : "/tmp") + "/vbdkit-nbd-XXXXXX";
  EXPECT_NE(::mkdtemp(path_.data()), nullptr);
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void HoldingSink::release(int error) {
  for (drivers::Request* r : std::exchange(held_, {})) r->done(*r, error);
}

TestServer::TestServer(const std::string& spec, ServerOptions options) {
  reactor_ = std::move(io::Reactor::create({}, log_)).value();
  auto graph = drivers::parse_graph(spec);
  EXPECT_TRUE(graph.ok()) << spec;
  auto node = drivers::open_graph(*graph, {*reactor_, log_, {options.read_only, false}});
  EXPECT_TRUE(node.ok()) << (node ? "" : node.error().message());
  node_ = std::move(node).value();
  scheduler_ = Scheduler::create(*reactor_, *node_);
  status_ = std::make_unique<SchedulerStatus>(*scheduler_);
  start(*scheduler_, *status_, std::move(options));
}

TestServer::TestServer(HoldingSink& sink, ServerOptions options) : holding_(&sink) {
  reactor_ = std::move(io::Reactor::create({}, log_)).value();
  start(sink, sink, std::move(options));
}

void TestServer::start(RequestSink& sink, StatusSource& status, ServerOptions options) {
  path_ = options.path.empty() ? dir_.file("nbd.sock") : options.path;
  options.path = path_;
  auto server = Server::create(*reactor_, sink, status, std::move(options), log_);
  ASSERT_TRUE(server.ok()) << server.error().message();
  server_ = std::move(server).value();
  thread_ = std::thread([this] { EXPECT_TRUE(reactor_->run().ok()); });
}

std::future<void> TestServer::shutdown(std::chrono::milliseconds drain) {
  auto down = std::make_shared<std::promise<void>>();
  auto result = down->get_future();
  reactor_->post([this, down, drain] { server_->shutdown([down] { down->set_value(); }, drain); });
  return result;
}

void TestServer::stop() {
  if (!thread_.joinable()) return;
  if (server_) {
    auto down = shutdown(std::chrono::milliseconds(0));
    // A test that failed half-way may have left requests with the sink.
    while (down.wait_for(std::chrono::milliseconds(1)) != std::future_status::ready)
      if (holding_ != nullptr) on_loop([this] { holding_->release(EIO); });
  }
  reactor_->stop();
  thread_.join();
  server_.reset();
}

RawClient::RawClient(const std::string& path) : fd_(::socket(AF_UNIX, SOCK_STREAM, 0)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
}

void RawClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return;  // the server closed: what the test looks at next shows it
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

size_t RawClient::send_some(std::string_view bytes) {
  size_t total = 0;
  while (total < bytes.size()) {
    const ssize_t n =
        ::send(fd_.get(), bytes.data() + total, bytes.size() - total, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n <= 0) break;
    total += static_cast<size_t>(n);
  }
  return total;
}

std::string RawClient::recv(size_t n) {
  std::string s(n, '\0');
  size_t have = 0;
  while (have < n) {
    const ssize_t r = ::recv(fd_.get(), s.data() + have, n - have, 0);
    if (r <= 0) break;
    have += static_cast<size_t>(r);
  }
  s.resize(have);
  return s;
}

bool RawClient::closed() {
  char c[4096];
  ssize_t r;
  while ((r = ::recv(fd_.get(), c, sizeof c, 0)) > 0) {
  }
  return r == 0 || errno == ECONNRESET;
}

std::string option_bytes(Option option, uint32_t length, std::string_view data) {
  return be(kOptionMagic) + be(static_cast<uint32_t>(option)) + be(length) + std::string(data);
}

bool RawClient::try_enter() {
  if (recv(18).size() != 18) return false;
  send(be(uint32_t{kClientFixedNewstyle | kClientNoZeroes}) +
       option_bytes(Option::kExportName, 0, ""));
  return recv(10).size() == 10;
}

std::string RawClient::encoded(Command command, uint64_t offset, uint32_t length, uint64_t cookie,
                               uint16_t flags) {
  RequestHeader h;
  h.flags = flags;
  h.command = static_cast<uint16_t>(command);
  h.cookie = cookie;
  h.offset = offset;
  h.length = length;
  std::array<uint8_t, kRequestSize> wire;
  encode_request(wire, h);
  return {reinterpret_cast<const char*>(wire.data()), wire.size()};
}

int RawClient::reply(uint64_t* cookie) {
  const std::string s = recv(kSimpleReplySize);
  if (s.size() < kSimpleReplySize) return -1;
  const auto* p = reinterpret_cast<const uint8_t*>(s.data());
  EXPECT_EQ(load_be<uint32_t>(p), kSimpleReplyMagic);
  if (cookie != nullptr) *cookie = load_be<uint64_t>(p + 8);
  return static_cast<int>(load_be<uint32_t>(p + 4));
}

}  // namespace vbdkit::nbd
