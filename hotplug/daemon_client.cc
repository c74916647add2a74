// SPDX-License-Identifier: LGPL-2.1-or-later
#include "hotplug/daemon_client.h"

#include "backend/control/qmp_client.h"

namespace vbdkit::hotplug {

namespace {

Result<control::QmpClient> connect(const std::string& socket) {
  auto client = control::QmpClient::connect(socket);
  if (!client)
    return Error(ErrorKind::kNotFound, "vbdkitd is not running (" + client.error().message() +
                                           "); start it with: systemctl start vbdkitd");
  return client;
}

}  // namespace

Result<void> DaemonClient::probe() const {
  VBDKIT_TRY(connect(socket_));
  return {};
}

Result<control::Json> DaemonClient::ask(std::string_view command, const std::string& device,
                                        std::chrono::milliseconds timeout) const {
  VBDKIT_ASSIGN(auto client, connect(socket_));
  std::string parameters;
  if (!device.empty()) {
    control::JsonWriter w;
    w.begin_object().field("device", device);
    w.field("timeout-ms", static_cast<uint64_t>(timeout.count())).end_object();
    parameters = w.take();
  }
  // More than the daemon's own deadline: for one that hangs.
  return client.execute(command, parameters, timeout + std::chrono::seconds(2));
}

}  // namespace vbdkit::hotplug
