// SPDX-License-Identifier: LGPL-2.1-or-later
//
// HookLink: an instance's line to vbdkit-hooks, the process that runs the admin's storage hooks for
// it. That one is started first, with the rights the instance starts with and will give up, and
// only where there are hooks at all. Telling it is one byte sent to a socket that it always
// empties, so no I/O ever waits for a hook; what there is to know it reads from record.json. It
// outlives the instance, also one that is killed, to tell of its end.
//
// Owned by the instance; the reactor's thread.
#pragma once

#include <optional>
#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace vbdkit {

class HookLink {
 public:
  // The end is told by the end of the connection.
  enum class Event : char {
    kRegister = 'r',
    kChange = 'c',
  };

  struct Options {
    std::string program;
    std::string hooks_dir;
    std::string runtime_dir;  // the instance's own
    std::string timeout;      // seconds that one hook may take
  };
  // Nothing where there are no hooks.
  [[gnu::cold]] static Result<std::optional<HookLink>> start(const Options& options);

  void tell(Event event) const;

 private:
  explicit HookLink(Fd socket) : socket_(std::move(socket)) {}
  Fd socket_;
};

}  // namespace vbdkit
