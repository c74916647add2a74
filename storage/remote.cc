// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/remote.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "base/fd.h"
#include "storage/command.h"
#include "storage/shared_registry.h"

namespace vbdkit::storage {
namespace {

constexpr size_t kMaxOutput = 1 << 20;  // bytes

std::string command_of(const std::vector<std::string>& args) {
  std::string command = "vbdkit";
  for (const std::string& arg : args) command += " " + quoted(arg);
  return command;
}

std::string content_of(const Fd& file) {
  struct stat st {};
  if (::fstat(file.get(), &st) != 0) return {};
  std::string text(std::min<size_t>(static_cast<size_t>(st.st_size), kMaxOutput), '\0');
  const ssize_t n = ::pread(file.get(), text.data(), text.size(), 0);
  text.resize(n > 0 ? static_cast<size_t>(n) : 0);
  while (text.ends_with('\n')) text.pop_back();
  return text;
}

Result<pid_t> spawn(std::vector<std::string> words, const Fd& output, const Fd& errors) {
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawnattr_init(&attributes);
  ::posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_adddup2(&files, output.get(), STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&files, errors.get(), STDERR_FILENO);
  // What interrupts us is for us to act on; and what we have blocked it shall not have.
  sigset_t none;
  ::sigemptyset(&none);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setpgroup(&attributes, 0);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
  pid_t pid = 0;
  const int error = ::posix_spawnp(&pid, argv[0], &files, &attributes, argv.data(), ::environ);
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&files);
  if (error != 0) return Error::from_errno(error, words[0]);
  return pid;
}

}  // namespace

std::string quoted(const std::string& word) {
  std::string out = "'";
  for (const char c : word) {
    if (c == '\'')
      out += "'\\''";
    else
      out += c;
  }
  return out + "'";
}

Result<std::string> host_named(const std::string& text) {
  if (!text.starts_with('@')) return text;
  VBDKIT_ASSIGN(auto shared, SharedRegistry::open(default_runtime_dir()));
  if (!shared) return Error(ErrorKind::kNotFound, "this host shares its registry with no others");
  VBDKIT_ASSIGN(HostInstance found, shared->find(text.substr(1)));
  return std::move(found.host);
}

int run_on_host(const std::string& host, const std::vector<std::string>& args, const Logger& log) {
  std::vector<std::string> words = {"ssh"};
  // For `top`: keys and the size of the terminal.
  if (::isatty(STDIN_FILENO) != 0 && ::isatty(STDOUT_FILENO) != 0) words.emplace_back("-t");
  words.insert(words.end(), {"--", host, command_of(args)});
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  ::execvp("ssh", argv.data());
  log.error("--host %s: ssh: %s", host.c_str(), std::strerror(errno));
  return kExitFailure;
}

Result<RemoteAnswer> ask_host(const std::string& host, const std::vector<std::string>& args,
                              std::chrono::milliseconds timeout) {
  const Fd output(::memfd_create("output", MFD_CLOEXEC));
  const Fd errors(::memfd_create("errors", MFD_CLOEXEC));
  if (!output.valid() || !errors.valid()) return Error::from_errno(errno, "memfd_create");
  // Nobody is there who could be asked for a password.
  VBDKIT_ASSIGN(const pid_t pid, spawn({"ssh", "-o", "BatchMode=yes", "--", host, command_of(args)},
                                       output, errors));
  const Fd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  pollfd end{process.get(), POLLIN, 0};
  int ready = 0;
  do {
    ready = ::poll(&end, 1, static_cast<int>(timeout.count()));
  } while (ready < 0 && errno == EINTR);
  if (ready <= 0) ::kill(-pid, SIGKILL);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (ready <= 0)
    return Error(ErrorKind::kTimedOut, "host " + host + " has not answered for " +
                                           std::to_string(timeout.count() / 1000) + " s");
  if (!WIFEXITED(status)) return Error(ErrorKind::kIo, "host " + host + ": ssh ended by a signal");
  return RemoteAnswer{WEXITSTATUS(status), content_of(output), content_of(errors)};
}

}  // namespace vbdkit::storage
