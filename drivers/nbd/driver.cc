// SPDX-License-Identifier: LGPL-2.1-or-later
//
// nbd and nbd+unix: the names are the schemes of the URI (NBD URI specification), the path is all
// of it that follows: "nbd://host:10809/name", "nbd+unix:///name?socket=/run/x.sock".
#include <algorithm>

#include "drivers/drivers.h"
#include "drivers/nbd/nbd_node.h"
#include "drivers/options.h"

namespace vbdkit::drivers {
namespace {

constexpr const char* kKeys[] = {"connect-timeout", "reconnect-timeout", "replay-memory"};

Result<nbd::NbdOptions> read_options(const NodeSpec& spec) {
  const OptionReader reader(spec);
  nbd::NbdOptions options;
  constexpr uint64_t kMostSeconds = 1'000'000'000;
  VBDKIT_ASSIGN(const uint64_t reconnect, reader.number("reconnect-timeout", 0));
  VBDKIT_ASSIGN(const uint64_t connect, reader.number("connect-timeout", 10));
  VBDKIT_ASSIGN(options.replay_memory, reader.size("replay-memory", options.replay_memory));
  options.reconnect_timeout = std::chrono::seconds(std::min(reconnect, kMostSeconds));
  options.handshake_timeout = std::chrono::seconds(std::clamp<uint64_t>(connect, 1, kMostSeconds));
  return options;
}

Result<NodePtr> open_nbd(const NodeSpec& spec, NodePtr, const OpenContext& context) {
  if (!spec.path.starts_with("//"))
    return Error(ErrorKind::kInvalid,
                 spec.driver + ": '" + spec.path + "': expected a URI, as in " +
                     (spec.driver == "nbd" ? "nbd://host:10809/name"
                                           : "nbd+unix:///name?socket=/run/x.sock"));
  VBDKIT_ASSIGN(const nbd::NbdOptions options, read_options(spec));
  nbd::Target target;
  target.uri = spec.driver + ":" + spec.path;
  target.transport = spec.driver == "nbd" ? nbd::Transport::kTcp : nbd::Transport::kUnix;
  VBDKIT_ASSIGN(const nbd::LibNbd api, nbd::LibNbd::load());
  auto node = std::make_unique<nbd::NbdNode>(api, spec, std::move(target), options, context);
  VBDKIT_TRY(node->open());
  return NodePtr(std::move(node));
}

}  // namespace

DriverEntry nbd_driver() {
  return {"nbd", "the export of an NBD server, over TCP", false, true, kKeys, open_nbd};
}

DriverEntry nbd_unix_driver() {
  return {"nbd+unix", "the export of an NBD server, over a unix socket", false, true, kKeys,
          open_nbd};
}

}  // namespace vbdkit::drivers
