// SPDX-License-Identifier: LGPL-2.1-or-later
//
// simxen-broker: the simulated hypervisor's process.
//   simxen-broker --listen FD|PATH [--proc DIRECTORY]
// Ends on SIGTERM or SIGINT.
#include <fcntl.h>
#include <sys/signalfd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "tests/sim/broker.h"

namespace {

using vbdkit::Fd;
using vbdkit::Result;

Result<void> run(const std::string& listen, const std::string& proc) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  ::sigprocmask(SIG_BLOCK, &signals, nullptr);
  const Fd stop(::signalfd(-1, &signals, SFD_CLOEXEC));
  Fd listener;
  if (listen.find_first_not_of("0123456789") == std::string::npos) {
    listener = Fd(std::atoi(listen.c_str()));
    ::fcntl(listener.get(), F_SETFD, FD_CLOEXEC);
  } else {
    VBDKIT_ASSIGN(listener, vbdkit::sim::listen_socket(listen));
  }
  VBDKIT_ASSIGN(auto broker, vbdkit::sim::Broker::create());
  if (!proc.empty()) VBDKIT_TRY(broker->write_proc_files(proc));
  return broker->serve(listener, stop);
}

}  // namespace

int main(int argc, char** argv) {
  std::string listen;
  std::string proc;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--listen") == 0) listen = argv[i + 1];
    if (std::strcmp(argv[i], "--proc") == 0) proc = argv[i + 1];
  }
  if (listen.empty()) {
    std::fprintf(stderr, "usage: simxen-broker --listen FD|PATH [--proc DIRECTORY]\n");
    return 2;
  }
  const auto result = run(listen, proc);
  if (!result) {
    std::fprintf(stderr, "simxen-broker: %s\n", result.error().message().c_str());
    return 1;
  }
  return 0;
}
