// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/launch.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/uuid.h"

namespace vbdkit {

namespace {

constexpr int kControlFd = 3;  // in the instance

Result<pid_t> spawn(const std::vector<std::string>& arguments, int control, int output) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);

  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawnattr_init(&attributes);
  if (output >= 0) {
    ::posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    ::posix_spawn_file_actions_adddup2(&files, output, STDOUT_FILENO);
    ::posix_spawn_file_actions_adddup2(&files, output, STDERR_FILENO);
  }
  ::posix_spawn_file_actions_adddup2(&files, control, kControlFd);
  sigset_t none;
  ::sigemptyset(&none);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
  pid_t pid = -1;
  const int error = ::posix_spawn(&pid, argv[0], &files, &attributes, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&files);
  ::posix_spawnattr_destroy(&attributes);
  if (error != 0) return Error::from_errno(error, "start " + arguments.front());
  return pid;
}

}  // namespace

Result<LaunchedInstance> launch_instance(const LaunchOptions& options) {
  LaunchedInstance instance;
  VBDKIT_ASSIGN(instance.uuid, random_uuid());
  instance.directory = options.instances_dir + "/" + instance.uuid;

  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
    return Error::from_errno(errno, "socketpair");
  instance.control = Fd(ends[0]);
  Fd theirs(ends[1]);
  // dup2 onto itself would leave it close-on-exec.
  if (theirs.get() == kControlFd) {
    theirs = Fd(::fcntl(ends[1], F_DUPFD_CLOEXEC, kControlFd + 1));
    if (!theirs.valid()) return Error::from_errno(errno, "duplicate a socket");
  }

  std::vector<std::string> arguments = {
      options.program,    "--spec",       options.spec,
      "--uuid",           instance.uuid,  "--runtime-dir",
      instance.directory, "--control-fd", std::to_string(kControlFd)};
  if (options.managed) arguments.emplace_back("--managed");
  if (options.read_only) arguments.emplace_back("--read-only");
  if (options.shared) arguments.emplace_back("--share");
  arguments.insert(arguments.end(), options.arguments.begin(), options.arguments.end());
  VBDKIT_ASSIGN(instance.pid, spawn(arguments, theirs.get(), options.output));
  return instance;
}

}  // namespace vbdkit
