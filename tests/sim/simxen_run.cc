// SPDX-License-Identifier: LGPL-2.1-or-later
//
// simxen-run [COMMAND [ARGUMENT…]]: a World, and in it a command (default: $SHELL), with the
// environment that lets every Xen program find it. The exit status is the command's.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "tests/sim/world.h"

namespace {

vbdkit::Result<int> run(int argc, char** argv) {
  VBDKIT_ASSIGN(auto world, vbdkit::sim::World::start());
  const char* shell = std::getenv("SHELL");
  std::string interactive = shell == nullptr ? "/bin/sh" : shell;
  char* shell_argv[] = {interactive.data(), nullptr};
  char** command = argc > 1 ? argv + 1 : shell_argv;
  if (argc == 1)
    std::fprintf(stderr, "simxen-run: a simulated Xen in %s; leave this shell to end it\n",
                 world->dir().c_str());
  // What is meant for the terminal's foreground is the command's business.
  ::signal(SIGINT, SIG_IGN);
  ::signal(SIGQUIT, SIG_IGN);
  const pid_t pid = ::fork();
  if (pid < 0) return vbdkit::Error::from_errno(errno, "simxen-run: fork");
  if (pid == 0) {
    ::signal(SIGINT, SIG_DFL);
    ::signal(SIGQUIT, SIG_DFL);
    for (const auto& [name, value] : world->environment()) ::setenv(name.c_str(), value.c_str(), 1);
    ::execvp(command[0], command);
    std::perror(command[0]);
    ::_exit(127);
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

int main(int argc, char** argv) {
  const auto code = run(argc, argv);
  if (code) return *code;
  std::fprintf(stderr, "%s\n", code.error().message().c_str());
  return 1;
}
