// SPDX-License-Identifier: LGPL-2.1-or-later
//
// JobRunner: what a command needs to run a job on nodes: a reactor, the nodes opened as a tool
// opens them, a progress bar, and an orderly end on SIGINT and SIGTERM. One thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "backend/image_claims.h"
#include "base/fd.h"
#include "drivers/jobs/job.h"
#include "drivers/registry.h"
#include "io/gated_reactor.h"
#include "storage/arguments.h"

namespace vbdkit::storage {

class JobRunner {
 public:
  static Result<std::unique_ptr<JobRunner>> create(io::EngineKind engine, const Logger& log);
  ~JobRunner();

  io::Reactor& reactor() { return gated_; }
  // Of images that other hosts can reach too; nullptr where this host shares no registry.
  ImageClaims* claims() { return claims_.get(); }
  // For the end of a job: true where images may be another host's by now, so that not even what
  // nodes write at their end may be written any more.
  bool must_let_go() const { return claims_ && !claims_->may_write(); }
  // Data that a tool moves goes through the page cache, unless the spec says direct=on: it is read
  // and written once, in order, and was often written lately.
  // `fresh`: an image that is of no use until the job has succeeded (OpenOptions::ignore_flush).
  Result<drivers::NodePtr> open(drivers::GraphSpec graph, bool read_only, bool fresh = false);
  drivers::OpenContext context(bool read_only, bool fresh = false) {
    return {gated_, log_, {.read_only = read_only, .shared = false, .ignore_flush = fresh}};
  }

  // Calls `start`, which starts the job and has finished() called at its end; returns then.
  // `label`: of the progress bar.
  Result<void> run(const std::string& label, drivers::Job& job, const std::function<void()>& start);
  void finished();

 private:
  JobRunner(Fd signals, std::unique_ptr<io::Reactor> reactor, const Logger& log);

  const Fd signals_;
  const Logger& log_;
  std::unique_ptr<io::Reactor> reactor_;
  io::GatedReactor gated_;
  std::unique_ptr<ImageClaims> claims_;
  bool finished_ = false;
};

// --engine, for commands that run jobs.
void add_engine_option(Syntax& syntax);
Result<io::EngineKind> engine_of(const po::variables_map& vm);

}  // namespace vbdkit::storage
