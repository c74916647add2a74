// SPDX-License-Identifier: LGPL-2.1-or-later
#include "io/reactor.h"

#include <string>

#include "io/uring_reactor.h"

namespace vbdkit::io {

Result<EngineKind> parse_engine(std::string_view name) {
  if (name == "auto") return EngineKind::kAuto;
  if (name == "io_uring") return EngineKind::kUring;
  if (name == "libaio") return EngineKind::kAio;
  if (name == "sync") return EngineKind::kSync;
  return Error(ErrorKind::kInvalid,
               "engine '" + std::string(name) + "': unknown (known: auto, io_uring, libaio, sync)");
}

Result<std::unique_ptr<Reactor>> Reactor::create(const Options& options, const Logger& log) {
  auto reactor = create_uring_reactor(options);
  if (reactor) log.debug("I/O engine: %s", (*reactor)->engine_name());
  return reactor;
}

}  // namespace vbdkit::io
