// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit-registryd: this host's part of a registry that several hosts share.
#include <curl/curl.h>
#include <systemd/sd-daemon.h>

#include <csignal>
#include <string>

#include "base/command_line.h"
#include "base/signals.h"
#include "registryd/daemon.h"

namespace vbdkit::registryd {

namespace {

constexpr const char* kUsage =
    "usage: vbdkit-registryd [options]\n"
    "Shares the registry of instances and the right to write to images with other hosts, by etcd.\n"
    "\n"
    "  --config FILE       (default: /etc/vbdkit/registry.conf)\n"
    "  --runtime-dir DIR   of the instances (default: /run/vbdkit)\n"
    "  --log-level NAME    error, warning, notice, info or debug\n"
    "  --version, --help\n";

struct Arguments {
  std::string config = registry_config_path();
  std::string runtime_dir = storage::default_runtime_dir();
  LogLevel log_level = LogLevel::kNotice;
  bool exit_early = false;
};

Result<Arguments> parse_arguments(int argc, char** argv) {
  Arguments a;
  CommandLine line("vbdkit-registryd", kUsage);
  line.text("config", a.config)
      .text("runtime-dir", a.runtime_dir)
      .log_level("log-level", a.log_level);
  VBDKIT_ASSIGN(const CommandLine::Rest rest, line.parse(argc, argv));
  a.exit_early = rest.answered;
  if (!rest.arguments.empty()) return unexpected_argument(rest.arguments.front());
  return a;
}

Result<void> serve(const Arguments& arguments, const Logger& log) {
  VBDKIT_ASSIGN(auto config, RegistryConfig::load(arguments.config));
  if (!config) return Error(ErrorKind::kNotFound, "there is no " + arguments.config);
  if (::curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
    return Error(ErrorKind::kIo, "libcurl cannot be used");
  // Before there are threads, so that none of them gets a signal.
  VBDKIT_ASSIGN(const Fd signals, catch_signals({SIGTERM, SIGINT}));
  VBDKIT_ASSIGN(const auto reactor, io::Reactor::create({.engine = io::EngineKind::kSync}, log));
  VBDKIT_ASSIGN(const auto daemon,
                Daemon::create(*reactor, log, std::move(*config), arguments.runtime_dir));
  const auto watch = reactor->watch(signals.get(), [&] { reactor->stop(); });
  ::sd_notify(0, "READY=1");
  auto ran = reactor->run();
  ::sd_notify(0, "STOPPING=1");
  return ran;
}

int run(int argc, char** argv) {
  const auto arguments = parse_arguments(argc, argv);
  const Logger log("vbdkit-registryd", arguments ? arguments->log_level : LogLevel::kNotice);
  if (!arguments) {
    log.error("%s", arguments.error().message().c_str());
    return 2;
  }
  if (arguments->exit_early) return 0;
  const auto served = serve(*arguments, log);
  if (served) return 0;
  log.error("%s", served.error().message().c_str());
  return 1;
}

}  // namespace

}  // namespace vbdkit::registryd

int main(int argc, char** argv) { return vbdkit::registryd::run(argc, argv); }
