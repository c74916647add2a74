// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the hotplug script and the libxl plugin ask the daemon (daemon_control.h), which may not
// run. Blocking, each call on a connection of its own; any thread.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "backend/control/json.h"
#include "base/result.h"

namespace vbdkit::hotplug {

class DaemonClient {
 public:
  explicit DaemonClient(const std::string& runtime_dir) : socket_(runtime_dir + "/vbdkitd.sock") {}

  // Whether it runs and answers.
  Result<void> probe() const;

  // `device` as in xenstore below backend/: "vbd/1/51712"; empty for commands without one. The
  // daemon keeps the deadline.
  Result<control::Json> ask(std::string_view command, const std::string& device,
                            std::chrono::milliseconds timeout) const;

 private:
  std::string socket_;
};

}  // namespace vbdkit::hotplug
