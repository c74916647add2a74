// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/hook_link.h"

#include <dirent.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <memory>

namespace vbdkit {

namespace {

bool has_entries(const std::string& path) {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), ::closedir);
  if (!dir) return false;
  while (const dirent* entry = ::readdir(dir.get())) {
    if (entry->d_name[0] != '.') return true;
  }
  return false;
}

}  // namespace

Result<std::optional<HookLink>> HookLink::start(const Options& options) {
  if (!has_entries(options.hooks_dir)) return std::optional<HookLink>();
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) < 0)
    return Error::from_errno(errno, "hooks: socketpair");
  const Fd theirs(ends[0]);
  Fd ours(ends[1]);

  std::array<std::string, 4> arguments = {options.program, options.hooks_dir, options.runtime_dir,
                                          options.timeout};
  std::array<char*, 5> argv{};
  for (size_t i = 0; i < arguments.size(); ++i) argv[i] = arguments[i].data();
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawnattr_init(&attributes);
  ::posix_spawn_file_actions_adddup2(&files, theirs.get(), STDIN_FILENO);
  sigset_t none;
  ::sigemptyset(&none);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
  pid_t pid = -1;
  const int error =
      ::posix_spawn(&pid, options.program.c_str(), &files, &attributes, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&files);
  ::posix_spawnattr_destroy(&attributes);
  if (error != 0) return Error::from_errno(error, "hooks: start " + options.program);
  return std::optional<HookLink>(HookLink(std::move(ours)));
}

void HookLink::tell(Event event) const {
  const char byte = static_cast<char>(event);
  // Without a reader, or where it does not read any more, there is nobody to tell.
  if (::send(socket_.get(), &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) return;
}

}  // namespace vbdkit
