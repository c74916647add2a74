// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The daemon's own control socket, …/vbdkitd.sock: QMP, as an instance's, with the commands
//     wait-ready {device, timeout-ms}   {uuid, nbd} once the disk can be used, or why it cannot
//     wait-gone {device, timeout-ms}    when nothing of the disk is left here
//     query-devices                     what the daemon knows of each disk
// A device is named as in xenstore below backend/: "vbd/1/51712".
//
// Thread: the reactor's.
#pragma once

#include <memory>
#include <string>

#include "backend/control/qmp_server.h"
#include "hotplug/daemon.h"

namespace vbdkit::hotplug {

class DaemonControl {
 public:
  static Result<std::unique_ptr<DaemonControl>> create(io::Reactor& reactor, const Logger& log,
                                                       Daemon& daemon, const std::string& path);

 private:
  explicit DaemonControl(Daemon& daemon);

  Daemon& daemon_;
  control::CommandTable commands_;
  std::unique_ptr<control::QmpServer> server_;
};

}  // namespace vbdkit::hotplug
