// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <sstream>

namespace vbdkit::sim {
namespace {

constexpr int kCannotExec = 127;

// Runs in the child between fork and exec: only what is allowed there.
[[noreturn]] void become(char* const* argv, char* const* environment,
                         const Process::Options& options, int log_fd, pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(kCannotExec);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::dup2(options.stdout_fd >= 0 ? options.stdout_fd : log_fd, STDOUT_FILENO);
  ::dup2(log_fd, STDERR_FILENO);
  if (options.inherit_fd >= 0) ::fcntl(options.inherit_fd, F_SETFD, 0);
  ::execvpe(argv[0], argv, environment);
  ::_exit(kCannotExec);
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (auto& s : strings) out.push_back(s.data());
  out.push_back(nullptr);
  return out;
}

}  // namespace

Result<std::unique_ptr<Process>> Process::start(const std::vector<std::string>& argv,
                                                const Options& options) {
  VBDKIT_ASSIGN(const Fd log, Fd::open(options.log_path, O_WRONLY | O_CREAT | O_APPEND, 0600));
  std::vector<std::string> arguments = argv;
  std::vector<std::string> environment;
  for (char** e = environ; *e != nullptr; ++e) {
    const std::string variable(*e);
    if (!options.environment.contains(variable.substr(0, variable.find('='))))
      environment.push_back(variable);
  }
  for (const auto& [name, value] : options.environment) environment.push_back(name + "=" + value);
  const auto argument_pointers = pointers(arguments);
  const auto environment_pointers = pointers(environment);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return Error::from_errno(errno, "run " + argv[0]);
  if (pid == 0)
    become(argument_pointers.data(), environment_pointers.data(), options, log.get(), parent);
  Fd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  return std::unique_ptr<Process>(new Process(pid, std::move(pidfd), options.log_path));
}

Process::~Process() {
  if (running()) {
    signal(SIGKILL);
    (void)wait(in(std::chrono::seconds(10))).ok();
  }
}

std::string Process::log() const {
  std::ostringstream out;
  out << std::ifstream(log_path_).rdbuf();
  return out.str();
}

bool Process::running() {
  if (status_) return false;
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) != pid_) return true;
  status_ = status;
  return false;
}

void Process::signal(int number) const {
  if (!status_) ::kill(pid_, number);
}

Result<int> Process::wait(Deadline deadline) {
  while (running()) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0)
      return Error(ErrorKind::kTimedOut, "process " + std::to_string(pid_) + " still runs");
    pollfd p{pidfd_.get(), POLLIN, 0};
    ::poll(&p, 1, static_cast<int>(left.count()));
  }
  return *status_;
}

Result<int> Process::stop(Deadline deadline) {
  signal(SIGTERM);
  auto status = wait(deadline);
  if (status) return status;
  signal(SIGKILL);
  return wait(in(std::chrono::seconds(10)));
}

}  // namespace vbdkit::sim
