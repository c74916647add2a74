// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit-registryd: this host's part of a registry that several hosts share.
#include <curl/curl.h>
#include <getopt.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "config.h"
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
  enum : int { kConfig = 1, kRuntimeDir, kLogLevel, kVersion, kHelp };
  static const option kOptions[] = {
      {"config", 1, nullptr, kConfig},      {"runtime-dir", 1, nullptr, kRuntimeDir},
      {"log-level", 1, nullptr, kLogLevel}, {"version", 0, nullptr, kVersion},
      {"help", 0, nullptr, kHelp},          {nullptr, 0, nullptr, 0}};
  Arguments a;
  for (int c; (c = ::getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    switch (c) {
      case kConfig:
        a.config = optarg;
        break;
      case kRuntimeDir:
        a.runtime_dir = optarg;
        break;
      case kLogLevel: {
        VBDKIT_ASSIGN(a.log_level, parse_log_level(optarg));
        break;
      }
      case kVersion:
        std::puts("vbdkit-registryd " VERSION);
        a.exit_early = true;
        return a;
      case kHelp:
        std::fputs(kUsage, stdout);
        a.exit_early = true;
        return a;
      default:
        return Error(ErrorKind::kInvalid, "see vbdkit-registryd --help");
    }
  }
  if (optind < argc)
    return Error(ErrorKind::kInvalid, std::string("unexpected argument '") + argv[optind] + "'");
  return a;
}

Result<Fd> catch_signals() {
  sigset_t mask;
  ::sigemptyset(&mask);
  ::sigaddset(&mask, SIGTERM);
  ::sigaddset(&mask, SIGINT);
  if (::sigprocmask(SIG_BLOCK, &mask, nullptr) < 0) return Error::from_errno(errno, "sigprocmask");
  Fd fd(::signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd.valid()) return Error::from_errno(errno, "signalfd");
  return fd;
}

Result<void> serve(const Arguments& arguments, const Logger& log) {
  VBDKIT_ASSIGN(auto config, RegistryConfig::load(arguments.config));
  if (!config) return Error(ErrorKind::kNotFound, "there is no " + arguments.config);
  if (::curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
    return Error(ErrorKind::kIo, "libcurl cannot be used");
  // Before there are threads, so that none of them gets a signal.
  VBDKIT_ASSIGN(const Fd signals, catch_signals());
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
