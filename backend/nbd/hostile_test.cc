// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Clients that break the protocol, vanish, or try to use the server up. What each test counts is
// what a naive server gets wrong.
#include <gtest/gtest.h>

#include <array>

#include "backend/nbd/test_server.h"

namespace vbdkit::nbd {
namespace {

constexpr const char* kRam = "ram,size=16M";

std::string client_flags() { return be(uint32_t{kClientFixedNewstyle | kClientNoZeroes}); }

// The server must still work for everybody else; one whose handshake was too slow tries again.
void expect_alive(TestServer& server) {
  EXPECT_TRUE(eventually([&] {
    RawClient c(server.path());
    if (!c.try_enter()) return false;
    c.request(Command::kFlush, 0, 0);
    return c.reply() == 0;
  }));
}

TEST(NbdHostile, WrongMagicsEndTheConnection) {
  TestServer server(kRam, {});
  {
    RawClient c(server.path());
    c.send(client_flags() + std::string(16, 'G'));
    EXPECT_TRUE(c.closed());
  }
  {
    RawClient c(server.path());
    c.send("GET / HTTP/1.1\r\n\r\n");
    EXPECT_TRUE(c.closed());
  }
  {
    RawClient c(server.path());
    c.enter();
    c.send(std::string(kRequestSize, 'x'));
    EXPECT_TRUE(c.closed());
  }
  EXPECT_EQ(server.stats().rejected, 3u);
  expect_alive(server);
}

// CVE-2017-15119: a 4 GiB option kept QEMU's server reading.
TEST(NbdHostile, AHugeOptionIsNotRead) {
  TestServer server(kRam, {});
  RawClient c(server.path());
  c.send(client_flags() + option_bytes(Option::kGo, 0xffffffff, std::string(1 << 20, 'x')));
  EXPECT_TRUE(c.closed());
  expect_alive(server);
}

// CVE-2024-7409: clients that never finish the handshake used up QEMU's connections.
TEST(NbdHostile, UnfinishedHandshakesAreEndedAndMakeRoom) {
  TestServer server(kRam,
                    {.max_connections = 2, .handshake_timeout = std::chrono::milliseconds(200)});
  std::vector<std::unique_ptr<RawClient>> flood;
  for (int i = 0; i < 7; ++i) flood.push_back(std::make_unique<RawClient>(server.path()));
  flood[0]->send(client_flags());  // one that makes a little progress
  expect_alive(server);
  for (auto& c : flood) EXPECT_TRUE(c->closed());
  EXPECT_GE(server.stats().rejected, 7u);
}

TEST(NbdHostile, AFinishedHandshakeHasNoDeadline) {
  TestServer server(kRam, {.handshake_timeout = std::chrono::milliseconds(200)});
  std::unique_ptr<RawClient> patient;
  ASSERT_TRUE(eventually([&] {
    patient = std::make_unique<RawClient>(server.path());
    return patient->try_enter();
  }));
  // Another's deadline passes meanwhile.
  RawClient idle(server.path());
  EXPECT_TRUE(idle.closed());
  patient->request(Command::kFlush, 0, 0);
  EXPECT_EQ(patient->reply(), 0);
}

TEST(NbdHostile, AnswersNobodyReadsDoNotPileUpInTheHandshake) {
  TestServer server(kRam, {});
  RawClient c(server.path());
  c.send(client_flags());
  const std::string list = option_bytes(Option::kList, 0, "");
  std::string many;
  for (int i = 0; i < 10000; ++i) many += list;
  // More than socket buffers hold is only accepted while the server goes on reading.
  size_t sent = 0;
  for (int i = 0; i < 100; ++i) {
    sent += c.send_some(many);
    server.on_loop([] {});
  }
  EXPECT_LT(sent, many.size() * 100);
  expect_alive(server);
}

TEST(NbdHostile, AWriteBeyondTheMaximumEndsTheConnection) {
  HoldingSink sink(uint64_t{1} << 30);
  TestServer server(sink, {});
  RawClient c(server.path());
  c.enter();
  c.request(Command::kWrite, 0, (32 << 20) + 512);
  EXPECT_TRUE(c.closed());
  EXPECT_EQ(sink.submitted, 0u);
}

TEST(NbdHostile, AReadBeyondTheMaximumIsRefused) {
  HoldingSink sink(uint64_t{1} << 40);
  TestServer server(sink, {});
  RawClient c(server.path());
  c.enter();
  c.request(Command::kRead, 0, 0xfffffe00);
  EXPECT_EQ(c.reply(), 22);
  EXPECT_EQ(sink.submitted, 0u);
}

TEST(NbdHostile, VanishingInTheMiddleOfAWriteWritesNothing) {
  HoldingSink sink(1 << 30);
  TestServer server(sink, {});
  for (size_t part : {size_t{0}, size_t{1}, size_t{4096}, size_t{1} << 20}) {
    RawClient c(server.path());
    c.enter();
    c.request(Command::kWrite, 0, 2 << 20);
    c.send(std::string(part, 'x'));
    c.disconnect();
    ASSERT_TRUE(eventually([&] { return server.stats().connections == 0; })) << part;
  }
  EXPECT_EQ(sink.submitted, 0u);
}

TEST(NbdHostile, VanishingWithRequestsInFlightWaitsForTheDisk) {
  HoldingSink sink(1 << 30);
  TestServer server(sink, {});
  RawClient c(server.path());
  c.enter();
  for (uint64_t i = 0; i < 10; ++i) c.request(Command::kRead, i * 4096, 4096, i);
  ASSERT_TRUE(eventually([&] { return sink.submitted == 10; }));
  c.disconnect();
  // Its memory is the disk's until the disk gives it back.
  RawClient other(server.path());
  other.enter();
  EXPECT_EQ(server.stats().connections, 2u);
  server.on_loop([&] { sink.release(0); });
  EXPECT_TRUE(eventually([&] { return server.stats().connections == 1; }));
}

TEST(NbdHostile, ARefusedWritesDataIsNotTakenForRequests) {
  TestServer server(kRam, {.read_only = true});
  RawClient c(server.path());
  c.enter();
  // The data looks like requests; 300 KiB does not fit in one receive.
  const std::string flush = RawClient::encoded(Command::kFlush, 0, 0);
  std::string data;
  while (data.size() < 300 << 10) data += flush;
  data.resize(300 << 10);
  c.request(Command::kWrite, 0, 300 << 10, 1);
  c.send(data);
  c.request(Command::kFlush, 0, 0, 2);
  uint64_t cookie = 0;
  EXPECT_EQ(c.reply(&cookie), 1);
  EXPECT_EQ(cookie, 1u);
  EXPECT_EQ(c.reply(&cookie), 0);
  EXPECT_EQ(cookie, 2u);
  EXPECT_EQ(server.stats().flushes, 1u);
}

// Lets the sink answer `total` requests, at most `limit` at a time, and reads the answers.
void expect_bounded(TestServer& server, HoldingSink& sink, RawClient& c, size_t total,
                    size_t limit) {
  size_t answered = 0;
  while (answered < total) {
    size_t held = 0;
    ASSERT_TRUE(eventually([&] {
      held = server.on_loop([&] { return sink.held(); });
      return held > 0;
    })) << answered;
    ASSERT_LE(held, limit);
    server.on_loop([&] { sink.release(EIO); });
    for (size_t i = 0; i < held; ++i) ASSERT_EQ(c.reply(), 5);
    answered += held;
  }
  EXPECT_EQ(sink.submitted, total);
}

TEST(NbdHostile, RequestsInFlightAreBounded) {
  HoldingSink sink(1 << 30);
  TestServer server(sink, {.max_requests = 10});
  RawClient c(server.path());
  c.enter();
  std::string wire;
  for (uint64_t i = 0; i < 500; ++i) wire += RawClient::encoded(Command::kRead, 0, 4096, i);
  c.send(wire);
  ASSERT_TRUE(eventually([&] { return sink.submitted >= 10; }));
  expect_bounded(server, sink, c, 500, 10);
}

TEST(NbdHostile, DataInFlightIsBounded) {
  HoldingSink sink(1 << 30);
  TestServer server(sink, {.max_bytes = 1 << 20});
  RawClient c(server.path());
  c.enter();
  std::string wire;
  for (uint64_t i = 0; i < 40; ++i) wire += RawClient::encoded(Command::kRead, 0, 256 << 10, i);
  c.send(wire);
  ASSERT_TRUE(eventually([&] { return sink.submitted >= 4; }));
  expect_bounded(server, sink, c, 40, 4);
}

TEST(NbdHostile, ARequestLargerThanTheBoundIsServedAlone) {
  HoldingSink sink(1 << 30);
  TestServer server(sink, {.max_bytes = 1 << 20});
  RawClient c(server.path());
  c.enter();
  std::string wire;
  for (uint64_t i = 0; i < 5; ++i) wire += RawClient::encoded(Command::kRead, 0, 8 << 20, i);
  c.send(wire);
  expect_bounded(server, sink, c, 5, 1);
}

TEST(NbdHostile, AClientThatDoesNotReadIsNotReadFrom) {
  TestServer server(kRam, {.max_requests = 16});
  RawClient c(server.path());
  c.enter();
  constexpr uint64_t kRequests = 20000;
  std::string wire;
  for (uint64_t i = 0; i < kRequests; ++i) wire += RawClient::encoded(Command::kRead, 0, 4096, i);
  // As much as the sockets take; then nothing moves until an answer is read.
  size_t sent = 0;
  uint64_t reads = 0;
  unsigned unchanged = 0;
  ASSERT_TRUE(eventually([&] {
    sent += c.send_some(std::string_view(wire).substr(sent));
    const uint64_t now = server.stats().reads;
    unchanged = now == reads ? unchanged + 1 : 0;
    reads = now;
    return reads > 0 && unchanged == 50;
  }));
  // A socket's buffer holds about a hundred answers of 4 KiB.
  EXPECT_LT(reads, 1000u);
  // And nothing is lost.
  for (uint64_t i = 0; i < kRequests; ++i) {
    uint64_t cookie = 0;
    ASSERT_EQ(c.reply(&cookie), 0) << i;
    ASSERT_EQ(c.recv(4096).size(), 4096u);
    sent += c.send_some(std::string_view(wire).substr(sent));
  }
  EXPECT_EQ(server.stats().reads, kRequests);
}

TEST(NbdHostile, ShutdownDoesNotWaitForAClientThatDoesNotRead) {
  TestServer server(kRam, {});
  RawClient c(server.path());
  c.enter();
  for (uint64_t i = 0; i < 20; ++i) c.request(Command::kRead, 0, 1 << 20, i);
  ASSERT_TRUE(eventually([&] { return server.stats().reads > 0; }));
  server.shutdown(std::chrono::milliseconds(20)).wait();
}

}  // namespace
}  // namespace vbdkit::nbd
