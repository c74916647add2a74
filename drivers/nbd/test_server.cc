// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/nbd/test_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <utility>

namespace vbdkit::drivers::nbd {
namespace {

void replace(std::string& text, const std::string& what, const std::string& with) {
  if (const size_t at = text.find(what); at != std::string::npos)
    text.replace(at, what.size(), with);
}

pid_t spawn(const std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  pid_t pid = 0;
  EXPECT_EQ(0, posix_spawnp(&pid, argv[0], nullptr, nullptr, argv.data(), environ)) << words[0];
  return pid;
}

void kill_and_wait(pid_t& process) {
  if (process == 0) return;
  ::kill(process, SIGKILL);
  waitpid(std::exchange(process, 0), nullptr, 0);
}

}  // namespace

TestServer::Command TestServer::nbdkit(std::vector<std::string> filters,
                                       std::vector<std::string> options) {
  Command command = {"nbdkit", "--foreground", "--unix", "{socket}", "--pidfile", "{pid}"};
  for (const std::string& filter : filters) command.push_back("--filter=" + filter);
  command.insert(command.end(), {"file", "file={file}"});
  command.insert(command.end(), options.begin(), options.end());
  return command;
}

TestServer::Command TestServer::qemu_nbd(std::vector<std::string> options) {
  Command command = {"qemu-nbd",         "--persistent", "--shared=0",     "--socket={socket}",
                     "--pid-file={pid}", "--format=raw", "--discard=unmap"};
  command.insert(command.end(), options.begin(), options.end());
  command.push_back("{file}");
  return command;
}

TestServer::TestServer(Command command, uint64_t size) : command_(std::move(command)) {
  char name[] = "/var/tmp/vbdkit-nbd-XXXXXX";
  EXPECT_NE(nullptr, mkdtemp(name));
  directory_ = name;
  resize(size);
}

TestServer::~TestServer() {
  kill();
  for (const char* name : {"file", "socket", "pid"}) unlink(path(name).c_str());
  rmdir(directory_.c_str());
}

void TestServer::resize(uint64_t size) {
  const auto fd = Fd::open(path("file"), O_RDWR | O_CREAT, 0600);
  ASSERT_TRUE(fd.ok());
  ASSERT_EQ(0, ftruncate(fd->get(), static_cast<off_t>(size)));
}

// Both programs write their process id when they listen.
void TestServer::start() {
  for (const char* name : {"socket", "pid"}) unlink(path(name).c_str());
  Command command = command_;
  for (std::string& word : command)
    for (const char* name : {"file", "socket", "pid"})
      replace(word, "{" + std::string(name) + "}", path(name));
  const Fd events(inotify_init1(IN_CLOEXEC));
  ASSERT_GE(inotify_add_watch(events.get(), directory_.c_str(), IN_MODIFY), 0);
  process_ = spawn(command);
  const Fd alive(static_cast<int>(syscall(SYS_pidfd_open, process_, 0)));
  while (access(path("pid").c_str(), F_OK) != 0) {
    alignas(inotify_event) char buffer[1024];
    pollfd p[] = {{.fd = events.get(), .events = POLLIN, .revents = 0},
                  {.fd = alive.get(), .events = POLLIN, .revents = 0}};
    ASSERT_GE(poll(p, 2, 60'000), 1) << "the server does not start";
    ASSERT_EQ(0, p[1].revents) << "the server has ended";
    ASSERT_GT(read(events.get(), buffer, sizeof buffer), 0);
  }
}

void TestServer::kill() { kill_and_wait(process_); }

TcpServer::TcpServer(uint64_t size) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
  char name[] = "/var/tmp/vbdkit-nbd-XXXXXX";
  Fd file(mkostemp(name, O_CLOEXEC));
  file_ = name;
  EXPECT_EQ(0, ftruncate(file.get(), static_cast<off_t>(size)));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  EXPECT_EQ(0, bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), length));
  EXPECT_EQ(0, listen(socket_.get(), 16));
  EXPECT_EQ(0, getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&address), &length));
  port_ = ntohs(address.sin_port);
}

TcpServer::~TcpServer() {
  kill();
  unlink(file_.c_str());
}

// The socket is handed over as sd_listen_fds(3) says.
void TcpServer::start() {
  const std::string file = "file=" + file_;
  process_ = fork();
  ASSERT_GE(process_, 0);
  if (process_ > 0) return;
  dup2(socket_.get(), 3);
  setenv("LISTEN_FDS", "1", 1);
  setenv("LISTEN_PID", std::to_string(getpid()).c_str(), 1);
  execlp("nbdkit", "nbdkit", "--foreground", "file", file.c_str(), nullptr);
  _exit(127);
}

void TcpServer::kill() { kill_and_wait(process_); }

}  // namespace vbdkit::drivers::nbd
