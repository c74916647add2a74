// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit serve: one disk, one NBD server, one reactor, until SIGTERM or SIGINT.
#include <sys/signalfd.h>
#include <unistd.h>

#include <boost/program_options.hpp>
#include <iostream>
#include <optional>

#include "backend/claimed_open.h"
#include "backend/nbd/server.h"
#include "backend/scheduler.h"
#include "drivers/registry.h"
#include "io/gated_reactor.h"
#include "storage/command.h"
#include "storage/offline_claims.h"
#include "storage/readiness.h"
#include "storage/registry.h"
#include "storage/termination.h"

namespace vbdkit::storage {
namespace {

namespace po = boost::program_options;

struct ServeOptions {
  std::string spec;
  nbd::ServerOptions nbd;
  io::EngineKind engine = io::EngineKind::kAuto;
  int ready_fd = -1;
};

po::options_description visible_options() {
  po::options_description visible("Options");
  visible.add_options()                                                                    //
      ("nbd", po::value<std::string>()->value_name("unix:PATH"), "listen on this socket")  //
      ("read-only,r", "refuse writes, open the image read-only")                           //
      ("export-name,e", po::value<std::string>()->value_name("NAME")->default_value(""),
       "what clients ask for; \"\" always works")  //
      ("description", po::value<std::string>()->value_name("TEXT")->default_value(""),
       "shown to clients that list exports")  //
      ("max-connections", po::value<unsigned>()->value_name("N")->default_value(16),
       "more clients wait until one leaves")  //
      ("engine",
       po::value<std::string>()->value_name("auto|io_uring|libaio|sync")->default_value("auto"),
       "how to reach the kernel")  //
      ("ready-fd", po::value<int>()->value_name("FD"),
       "write a newline here when clients can connect")  //
      ("help,h", "this text");
  return visible;
}

// Nothing where only help was asked for.
Result<std::optional<ServeOptions>> parse(const std::vector<std::string>& args) {
  const po::options_description visible = visible_options();
  po::options_description all;
  all.add(visible).add_options()("spec", po::value<std::string>());
  po::positional_options_description positional;
  positional.add("spec", 1);
  po::variables_map vm;
  try {
    po::store(po::command_line_parser(args).options(all).positional(positional).run(), vm);
    po::notify(vm);
  } catch (const po::error& e) {
    return Error(ErrorKind::kInvalid, std::string("serve: ") + e.what(), EINVAL);
  }
  if (vm.count("help") != 0) {
    std::cout << "Usage: vbdkit serve SPEC --nbd unix:PATH [OPTION...]\n\n" << visible;
    return std::optional<ServeOptions>();
  }

  ServeOptions o;
  if (vm.count("spec") == 0)
    return Error(ErrorKind::kInvalid, "serve: which disk? (raw:/srv/a.img)", EINVAL);
  if (vm.count("nbd") == 0)
    return Error(ErrorKind::kInvalid, "serve: where? (--nbd unix:PATH)", EINVAL);
  constexpr std::string_view kUnix = "unix:";
  const auto& where = vm["nbd"].as<std::string>();
  if (!where.starts_with(kUnix))
    return Error(ErrorKind::kInvalid, "serve: --nbd " + where + ": only unix:PATH is known",
                 EINVAL);
  o.spec = vm["spec"].as<std::string>();
  o.nbd.path = where.substr(kUnix.size());
  o.nbd.export_name = vm["export-name"].as<std::string>();
  o.nbd.description = vm["description"].as<std::string>();
  o.nbd.read_only = vm.count("read-only") != 0;
  o.nbd.max_connections = vm["max-connections"].as<unsigned>();
  if (o.nbd.max_connections == 0)
    return Error(ErrorKind::kInvalid, "serve: --max-connections is at least 1", EINVAL);
  VBDKIT_ASSIGN(o.engine, io::parse_engine(vm["engine"].as<std::string>()));
  if (vm.count("ready-fd") != 0) o.ready_fd = vm["ready-fd"].as<int>();
  return std::optional<ServeOptions>(std::move(o));
}

// The end of serving: the server drains, then one flush makes durable what clients left behind.
class Stopper {
 public:
  Stopper(io::Reactor& reactor, RequestSink& sink, nbd::Server& server)
      : reactor_(reactor), sink_(sink), server_(server) {}

  // Once; a second signal while draining ends the program by its default action.
  void begin() {
    server_.shutdown([this] { flush(); });
  }
  int flush_error() const { return flush_.error; }

 private:
  struct Flush : drivers::Request {
    Stopper* stopper = nullptr;
    int error = 0;
  };

  void flush() {
    if (sink_.info().read_only) {
      reactor_.stop();
      return;
    }
    flush_.stopper = this;
    flush_.op = drivers::Op::kFlush;
    flush_.done = [](drivers::Request& request, int error) {
      auto& self = static_cast<Flush&>(request);
      self.error = error;
      self.stopper->reactor_.stop();
    };
    sink_.submit(flush_);
  }

  io::Reactor& reactor_;
  RequestSink& sink_;
  nbd::Server& server_;
  Flush flush_;
};

Result<void> run(const ServeOptions& options, const Logger& log) {
  VBDKIT_ASSIGN(const Fd signals, catch_termination());
  VBDKIT_ASSIGN(const drivers::GraphSpec graph, drivers::parse_graph(options.spec));
  io::Reactor::Options reactor_options;
  reactor_options.engine = options.engine;
  VBDKIT_ASSIGN(const auto kernel, io::Reactor::create(reactor_options, log));
  io::GatedReactor gated(*kernel);
  io::GatedReactor* const reactor = &gated;
  VBDKIT_ASSIGN(const auto claims, claims_of_command(gated, log));
  // Readers do no harm to each other; a writer wants the image for itself.
  const drivers::OpenOptions open{.read_only = options.nbd.read_only,
                                  .shared = options.nbd.read_only};
  VBDKIT_ASSIGN(const auto node, open_claimed(graph, {*reactor, log, open}, claims.get()));
  const auto scheduler = Scheduler::create(*reactor, *node);
  nbd::SchedulerStatus status(*scheduler);
  VBDKIT_ASSIGN(const auto server,
                nbd::Server::create(*reactor, *scheduler, status, options.nbd, log));

  Stopper stopper(*reactor, *scheduler, *server);
  std::unique_ptr<io::FdWatch> watch;
  watch = reactor->watch(signals.get(), [&] {
    signalfd_siginfo info;
    if (::read(signals.get(), &info, sizeof info) != sizeof info) return;
    log.info("signal %u: stopping", info.ssi_signo);
    release_termination();
    stopper.begin();
    watch.reset();
  });

  log.info("serving %s on %s (%s)", node->spec().c_str(), options.nbd.path.c_str(),
           reactor->engine_name());
  if (options.ready_fd >= 0) VBDKIT_TRY(announce_on_fd(options.ready_fd));
  VBDKIT_TRY(announce_to_systemd());
  VBDKIT_TRY(reactor->run());
  if (claims && !claims->may_write()) ::_exit(kExitFailure);  // not what nodes write at their end
  if (stopper.flush_error() != 0)
    return Error::from_errno(stopper.flush_error(), "flush " + node->spec());
  return {};
}

}  // namespace

int serve(const std::vector<std::string>& args, const Logger& log) {
  const auto options = parse(args);
  if (!options) {
    log.error("%s", options.error().message().c_str());
    return kExitUsage;
  }
  if (!options->has_value()) return kExitOk;
  const auto result = run(**options, log);
  if (result) return kExitOk;
  log.error("%s", result.error().message().c_str());
  return kExitFailure;
}

}  // namespace vbdkit::storage
