// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/lib_connection.h"

#include <unistd.h>

namespace vbdkit::sim {

Result<std::shared_ptr<Connection>> process_connection() {
  struct State {
    std::mutex lock;
    pid_t pid = 0;
    std::shared_ptr<Connection> connection;
  };
  // Never destroyed: threads may use their handles while the process exits.
  static State& state = *new State;
  const std::lock_guard guard(state.lock);
  if (state.connection == nullptr || state.pid != ::getpid()) {
    VBDKIT_ASSIGN(state.connection, Connection::open_from_environment());
    state.pid = ::getpid();
  }
  return state.connection;
}

}  // namespace vbdkit::sim
