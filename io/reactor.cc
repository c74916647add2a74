// SPDX-License-Identifier: LGPL-2.1-or-later
#include "io/reactor.h"

#include <string>

#include "io/epoll_reactor.h"
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

namespace {

Result<std::unique_ptr<Reactor>> create_one(EngineKind kind, const Reactor::Options& options) {
  if (kind == EngineKind::kUring) return create_uring_reactor(options);
  return create_epoll_reactor(options, kind);
}

}  // namespace

Result<std::unique_ptr<Reactor>> Reactor::create(const Options& options, const Logger& log) {
  if (options.engine != EngineKind::kAuto) {
    auto reactor = create_one(options.engine, options);
    if (reactor) log.info("I/O engine: %s", (*reactor)->engine_name());
    return reactor;
  }
  constexpr EngineKind kBestFirst[] = {EngineKind::kUring, EngineKind::kAio, EngineKind::kSync};
  std::string reasons;
  Result<std::unique_ptr<Reactor>> reactor = Error(ErrorKind::kUnsupported, "no I/O engine");
  for (const EngineKind kind : kBestFirst) {
    reactor = create_one(kind, options);
    if (reactor) break;
    reasons += (reasons.empty() ? "" : "; ") + reactor.error().message();
  }
  if (!reactor) return Error(ErrorKind::kUnsupported, "no I/O engine works: " + reasons);
  // That the best one is missing costs speed, which an admin will want to know the reason of.
  if (reasons.empty())
    log.info("I/O engine: %s", (*reactor)->engine_name());
  else
    log.notice("I/O engine: %s (%s)", (*reactor)->engine_name(), reasons.c_str());
  return reactor;
}

}  // namespace vbdkit::io
