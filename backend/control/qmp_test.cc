// SPDX-License-Identifier: LGPL-2.1-or-later
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <thread>

#include "backend/control/qmp_client.h"
#include "backend/control/qmp_link.h"
#include "backend/control/qmp_server.h"
#include "backend/control/unix_socket.h"

namespace vbdkit::control {
namespace {

using namespace std::chrono_literals;

// A server on its own thread, with commands that answer at once, late, and never.
class Qmp : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/vbdkit-qmp-XXXXXX";
    dir_ = ::mkdtemp(name);
    path_ = dir_ + "/qmp.sock";
    reactor_ = std::move(*io::Reactor::create({}, log_));
    commands_.add("echo", {"text"}, [](const Json& arguments, Reply reply) {
      reply.value(arguments.member("text").dump());
    });
    commands_.add("keep", {},
                  [this](const Json&, Reply reply) { kept_.emplace(std::move(reply)); });
    commands_.add("drop", {}, [](const Json&, Reply) {});
    commands_.add("release", {}, [this](const Json&, Reply reply) {
      kept_->ok();
      kept_.reset();
      reply.ok();
    });
    commands_.add("big", {}, [](const Json&, Reply reply) {
      reply.value("\"" + std::string(200 * 1024, 'x') + "\"");
    });
    commands_.add("event", {}, [this](const Json&, Reply reply) {
      server_->event("TEST_EVENT", "{\"n\":1}");
      reply.ok();
    });
    auto server = QmpServer::create(*reactor_, log_, commands_,
                                    {.path = path_, .max_sessions = 4, .version = "1.2.3"});
    ASSERT_TRUE(server) << server.error().message();
    server_ = std::move(*server);
    thread_ = std::thread([this] { EXPECT_TRUE(reactor_->run()); });
  }

  void TearDown() override {
    reactor_->stop();
    thread_.join();
    kept_.reset();
    server_.reset();
    EXPECT_FALSE(std::filesystem::exists(path_));
    std::filesystem::remove_all(dir_);
  }

  // A connection that speaks no QMP by itself.
  Fd raw() {
    auto fd = connect_unix(path_);
    EXPECT_TRUE(fd);
    const int flags = ::fcntl(fd->get(), F_GETFL);
    ::fcntl(fd->get(), F_SETFL, flags & ~O_NONBLOCK);
    const timeval limit{10, 0};
    ::setsockopt(fd->get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return std::move(*fd);
  }

  static std::string line(const Fd& fd) {
    std::string out;
    for (char c;;) {
      const ssize_t n = ::recv(fd.get(), &c, 1, 0);
      if (n < 0 && errno == EINTR) continue;  // work of the other thread's io_uring
      if (n != 1) break;
      out += c;
      if (c == '\n') break;
    }
    return out;
  }

  static void put(const Fd& fd, std::string_view text) {
    ASSERT_EQ(::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(text.size()));
  }

  Logger log_{"test", LogLevel::kError};
  std::string dir_, path_;
  std::unique_ptr<io::Reactor> reactor_;
  CommandTable commands_;
  std::optional<Reply> kept_;
  std::unique_ptr<QmpServer> server_;
  std::thread thread_;
};

TEST_F(Qmp, GreetsThenWantsNegotiation) {
  const Fd fd = raw();
  EXPECT_EQ(line(fd),
            "{\"QMP\":{\"version\":{\"qemu\":{\"micro\":3,\"minor\":2,\"major\":1},"
            "\"package\":\"vbdkit-1.2.3\"},\"capabilities\":[]}}\r\n");
  put(fd, "{\"execute\":\"echo\"}");
  EXPECT_NE(line(fd).find("\"class\":\"CommandNotFound\""), std::string::npos);
  put(fd, "{\"execute\":\"qmp_capabilities\",\"id\":{\"a\":[1]}}");
  EXPECT_EQ(line(fd), "{\"return\":{},\"id\":{\"a\":[1]}}\r\n");
  put(fd, "{\"execute\":\"qmp_capabilities\"}");
  EXPECT_NE(line(fd).find("already complete"), std::string::npos);
}

TEST_F(Qmp, SocketIsTheOwnersAlone) {
  struct stat st;
  ASSERT_EQ(::stat(path_.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600u);
}

TEST_F(Qmp, ReplacesTheSocketOfADeadProcess) {
  const std::string stale = dir_ + "/stale.sock";
  ASSERT_TRUE(listen_unix(stale));  // closed at once, the file stays
  EXPECT_TRUE(std::filesystem::exists(stale));
  EXPECT_TRUE(listen_unix(stale));
}

TEST_F(Qmp, ClientGetsAnswersErrorsAndEvents) {
  auto client = QmpClient::connect(path_);
  ASSERT_TRUE(client) << client.error().message();
  const auto echoed = client->execute("echo", "{\"text\":\"hallo\"}");
  ASSERT_TRUE(echoed);
  EXPECT_EQ(echoed->string(), "hallo");
  ASSERT_TRUE(client->execute("event"));
  const auto event = client->event(5s);
  ASSERT_TRUE(event);
  EXPECT_EQ(event->member("event").string(), "TEST_EVENT");
  EXPECT_EQ(event->member("data").member("n").number(), 1u);

  const auto unknown = client->execute("nonsense");
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().message(), "The command nonsense has not been found");
  const auto unexpected = client->execute("echo", "{\"txet\":1}");
  ASSERT_FALSE(unexpected);
  EXPECT_EQ(unexpected.error().message(), "Parameter 'txet' is unexpected");
  const auto dropped = client->execute("drop");
  ASSERT_FALSE(dropped);
  EXPECT_EQ(dropped.error().message(), "The command was abandoned");
}

TEST_F(Qmp, CommandsOfOneConnectionAreAnsweredInOrder) {
  const Fd fd = raw();
  line(fd);
  put(fd,
      "{\"execute\":\"qmp_capabilities\"}{\"execute\":\"keep\",\"id\":1}"
      "{\"execute\":\"echo\",\"arguments\":{\"text\":2},\"id\":2}");
  line(fd);
  auto other = QmpClient::connect(path_);
  ASSERT_TRUE(other);
  ASSERT_TRUE(other->execute("release"));
  EXPECT_EQ(line(fd), "{\"return\":{},\"id\":1}\r\n");
  EXPECT_EQ(line(fd), "{\"return\":2,\"id\":2}\r\n");
}

TEST_F(Qmp, LateAnswerToAClientThatLeftIsDropped) {
  {
    const Fd fd = raw();
    line(fd);
    put(fd, "{\"execute\":\"qmp_capabilities\"}{\"execute\":\"keep\"}");
    line(fd);
    auto same = QmpClient::connect(path_);  // the command is taken once this one is answered
    ASSERT_TRUE(same);
  }
  auto other = QmpClient::connect(path_);
  ASSERT_TRUE(other);
  EXPECT_TRUE(other->execute("release"));
}

TEST_F(Qmp, RubbishIsAnsweredAndTheConnectionGoesOn) {
  const Fd fd = raw();
  line(fd);
  put(fd, "GET / HTTP/1.1\r\n{\"execute\" 5}[]{\"execute\":7}{\"run\":1}");
  for (int i = 0; i < 5; ++i)
    EXPECT_NE(line(fd).find("\"class\":\"GenericError\""), std::string::npos) << i;
  put(fd, "{\"execute\":\"qmp_capabilities\"}");
  EXPECT_EQ(line(fd), "{\"return\":{}}\r\n");
}

TEST_F(Qmp, EndlessMessageEndsTheConnectionOnly) {
  const Fd fd = raw();
  line(fd);
  const std::string flood = "{\"execute\":\"" + std::string(2 * kMaxMessage, 'x');
  ::send(fd.get(), flood.data(), flood.size(), MSG_NOSIGNAL);  // may be cut off in the middle
  EXPECT_EQ(line(fd), "");
  auto client = QmpClient::connect(path_);
  ASSERT_TRUE(client);
  EXPECT_TRUE(client->execute("echo"));
}

TEST_F(Qmp, ClientThatDoesNotReadHoldsUpNobody) {
  const Fd deaf = raw();
  std::string commands = "{\"execute\":\"qmp_capabilities\"}";
  for (int i = 0; i < 20; ++i) commands += "{\"execute\":\"big\"}";
  put(deaf, commands);
  auto client = QmpClient::connect(path_);
  ASSERT_TRUE(client);
  EXPECT_TRUE(client->execute("echo"));
  // Whoever reads after all gets everything asked for, in full.
  line(deaf);
  line(deaf);
  for (int i = 0; i < 20; ++i) ASSERT_EQ(line(deaf).size(), 200 * 1024 + 15u);
}

TEST_F(Qmp, ConnectionsAreLimited) {
  std::vector<QmpClient> clients;
  for (int i = 0; i < 4; ++i) {
    auto client = QmpClient::connect(path_);
    ASSERT_TRUE(client);
    clients.push_back(std::move(*client));
  }
  EXPECT_FALSE(QmpClient::connect(path_));
  clients.pop_back();
  // The server learns of the departure before it sees who connects later.
  EXPECT_TRUE(clients.front().execute("echo"));
  auto next = QmpClient::connect(path_);
  EXPECT_TRUE(next);
}

TEST_F(Qmp, LinkMatchesAnswersToItsCommandsAndFailsTheRest) {
  Logger log("test", LogLevel::kError);
  const auto reactor = std::move(*io::Reactor::create({}, log));
  auto socket = connect_unix(path_);
  ASSERT_TRUE(socket);
  std::vector<std::string> seen;
  std::unique_ptr<QmpLink> link;
  auto made =
      QmpLink::create(*reactor, std::move(*socket),
                      {.ready = [&] { seen.push_back("ready"); },
                       .event = [&](const std::string& name, const Json&) { seen.push_back(name); },
                       .closed =
                           [&] {
                             seen.push_back("closed");
                             link.reset();
                             reactor->stop();
                           }});
  ASSERT_TRUE(made);
  link = std::move(*made);
  link->execute("echo", "{\"text\":1}",
                [&](Result<Json> r) { seen.push_back(r ? r->dump() : "-"); });
  link->execute("nonsense", {}, [&](Result<Json> r) {
    seen.push_back(r ? "?" : r.error().message());
    // Too long for the server, which hangs up.
    link->execute(std::string(2 * kMaxMessage, 'x'), {},
                  [&](Result<Json> last) { seen.push_back(last ? "?" : "failed"); });
  });
  ASSERT_TRUE(reactor->run());
  EXPECT_EQ(seen, (std::vector<std::string>{"ready", "1", "The command nonsense has not been found",
                                            "failed", "closed"}));
}

}  // namespace
}  // namespace vbdkit::control
