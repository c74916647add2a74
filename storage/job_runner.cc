// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/job_runner.h"

#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>

#include "backend/claimed_open.h"
#include "drivers/drivers.h"
#include "storage/offline_claims.h"
#include "storage/progress.h"
#include "storage/registry.h"
#include "storage/termination.h"

namespace vbdkit::storage {
namespace {

constexpr auto kProgressInterval = std::chrono::milliseconds(200);

}  // namespace

JobRunner::JobRunner(Fd signals, std::unique_ptr<io::Reactor> reactor, const Logger& log)
    : signals_(std::move(signals)), log_(log), reactor_(std::move(reactor)), gated_(*reactor_) {}

JobRunner::~JobRunner() { release_termination(); }

Result<std::unique_ptr<JobRunner>> JobRunner::create(io::EngineKind engine, const Logger& log) {
  VBDKIT_ASSIGN(Fd signals, catch_termination());
  io::Reactor::Options options;
  options.engine = engine;
  VBDKIT_ASSIGN(auto reactor, io::Reactor::create(options, log));
  std::unique_ptr<JobRunner> runner(new JobRunner(std::move(signals), std::move(reactor), log));
  VBDKIT_ASSIGN(runner->claims_, claims_of_command(runner->gated_, log));
  return runner;
}

Result<drivers::NodePtr> JobRunner::open(drivers::GraphSpec graph, bool read_only, bool fresh) {
  drivers::NodeSpec& leaf = graph.nodes.back();
  const drivers::DriverEntry* const driver = drivers::find_driver(leaf.driver);
  if (driver != nullptr &&
      std::ranges::find(driver->keys, std::string_view("direct")) != driver->keys.end())
    leaf.options.try_emplace("direct", "off");
  return open_claimed(graph, context(read_only, fresh), claims_.get());
}

Result<void> JobRunner::run(const std::string& label, drivers::Job& job,
                            const std::function<void()>& start) {
  Progress progress(label);
  std::unique_ptr<io::Timer> timer;
  const auto show = [&] {
    progress.show(job.settled(), job.total());
    timer->arm(io::Timer::Clock::now() + kProgressInterval);
  };
  if (progress.visible()) {
    timer = reactor_->timer(show);
    timer->arm(io::Timer::Clock::now() + kProgressInterval);
  }
  std::unique_ptr<io::FdWatch> watch;
  watch = reactor_->watch(signals_.get(), [&] {
    signalfd_siginfo info;
    if (::read(signals_.get(), &info, sizeof info) != sizeof info) return;
    release_termination();  // a second one ends the program at once
    job.cancel();
    watch.reset();
  });
  finished_ = false;
  start();
  if (finished_) return {};
  return reactor_->run();
}

void JobRunner::finished() {
  finished_ = true;
  reactor_->stop();
}

void add_engine_option(Syntax& syntax) {
  syntax.options.add_options()(
      "engine",
      po::value<std::string>()->value_name("auto|io_uring|libaio|sync")->default_value("auto"),
      "how to reach the kernel");
}

Result<io::EngineKind> engine_of(const po::variables_map& vm) {
  return io::parse_engine(text_of(vm, "engine"));
}

}  // namespace vbdkit::storage
