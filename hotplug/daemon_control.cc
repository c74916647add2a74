// SPDX-License-Identifier: LGPL-2.1-or-later
#include "hotplug/daemon_control.h"

#include <optional>

#include "config.h"

namespace vbdkit::hotplug {

using control::Json;
using control::JsonWriter;
using control::Reply;

namespace {

// Each waiting script holds a connection; a host may start many guests at once.
constexpr size_t kMaxSessions = 512;
constexpr uint64_t kDefaultTimeout = 30'000;  // ms

struct WaitArguments {
  DeviceName device;
  std::chrono::milliseconds timeout;
};

Result<WaitArguments> parse_wait(const Json& arguments) {
  const auto text = arguments.member("device").string();
  const auto device = text ? DeviceName::parse(*text) : std::nullopt;
  if (!device) return Error(ErrorKind::kInvalid, "Parameter 'device' must read as vbd/1/51712");
  const uint64_t timeout = arguments.member("timeout-ms").number().value_or(kDefaultTimeout);
  return WaitArguments{*device, std::chrono::milliseconds(std::min(timeout, uint64_t{600'000}))};
}

}  // namespace

Result<std::unique_ptr<DaemonControl>> DaemonControl::create(io::Reactor& reactor,
                                                             const Logger& log, Daemon& daemon,
                                                             const std::string& path) {
  std::unique_ptr<DaemonControl> control(new DaemonControl(daemon));
  VBDKIT_ASSIGN(
      control->server_,
      control::QmpServer::create(reactor, log, control->commands_,
                                 {.path = path, .max_sessions = kMaxSessions, .version = VERSION}));
  return control;
}

DaemonControl::DaemonControl(Daemon& daemon) : daemon_(daemon) {
  commands_.add("wait-ready", {"device", "timeout-ms"}, [this](const Json& json, Reply reply) {
    const auto arguments = parse_wait(json);
    if (!arguments) return reply.error(arguments.error());
    daemon_.wait_ready(
        arguments->device, arguments->timeout,
        [held = std::make_shared<Reply>(std::move(reply))](Result<Daemon::Ready> result) {
          if (!result) return held->error(result.error());
          JsonWriter w;
          w.begin_object().field("uuid", result->uuid);
          w.field("nbd", result->nbd_socket).end_object();
          held->value(w.take());
        });
  });
  commands_.add("wait-gone", {"device", "timeout-ms"}, [this](const Json& json, Reply reply) {
    const auto arguments = parse_wait(json);
    if (!arguments) return reply.error(arguments.error());
    daemon_.wait_gone(arguments->device, arguments->timeout,
                      [held = std::make_shared<Reply>(std::move(reply))](Result<void> result) {
                        if (!result) return held->error(result.error());
                        held->ok();
                      });
  });
  commands_.add("query-devices", {}, [this](const Json&, Reply reply) {
    JsonWriter w;
    w.begin_array();
    for (const Daemon::DeviceInfo& device : daemon_.devices()) {
      w.begin_object().field("device", device.name.to_string()).field("spec", device.spec);
      w.field("state", device.state).field("writer", device.writer);
      if (!device.error.empty()) w.field("error", device.error);
      if (device.pid != 0)
        w.field("uuid", device.uuid).field("pid", static_cast<uint64_t>(device.pid));
      w.end_object();
    }
    w.end_array();
    reply.value(w.take());
  });
}

}  // namespace vbdkit::hotplug
