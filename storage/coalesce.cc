// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit coalesce: an image merged into its parent, while others use what stands on it.
#include "storage/coalesce.h"

#include <unistd.h>

#include <cstdio>

#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/instance_argument.h"
#include "storage/instance_users.h"
#include "storage/job_runner.h"
#include "storage/terminal.h"

namespace vbdkit::storage {
namespace {

Result<int> run(const po::variables_map& vm, const Logger& log) {
  VBDKIT_ASSIGN(const drivers::NodeSpec image, parse_image(text_of(vm, "SPEC")));
  VBDKIT_ASSIGN(const io::EngineKind engine, engine_of(vm));
  drivers::CoalesceOptions options;
  options.keep = vm.count("keep") != 0;
  if (vm.count("directory") != 0)
    options.directories = vm["directory"].as<std::vector<std::string>>();
  VBDKIT_ASSIGN(const CoalesceOutcome outcome,
                merge_into_parent(image, std::move(options), registry_of(vm), engine, log));
  if (outcome.content.empty())
    std::printf("%s: what was left to do is done\n", printable(image.path).c_str());
  else
    std::printf("%s: merged; the content is in %s; images put on it: %zu\n",
                printable(image.path).c_str(), printable(outcome.content).c_str(),
                outcome.children);
  return kExitOk;
}

}  // namespace

Result<CoalesceOutcome> merge_into_parent(const drivers::NodeSpec& image,
                                          drivers::CoalesceOptions options,
                                          const Registry& registry, io::EngineKind engine,
                                          const Logger& log) {
  VBDKIT_ASSIGN(const auto runner, JobRunner::create(engine, log));
  InstanceUsers users(registry, runner->claims());
  options.users = &users;
  if (const ImageClaims* const claims = runner->claims())
    options.may_write = [claims] { return claims->may_write(); };
  VBDKIT_ASSIGN(const auto job, drivers::CoalesceJob::plan(image, options, runner->context(false)));
  Result<void> outcome;
  VBDKIT_TRY(runner->run("coalesce", *job, [&] {
    job->start([&](Result<void> result) {
      outcome = std::move(result);
      runner->finished();
    });
  }));
  if (!outcome && runner->must_let_go()) {
    log.error("coalesce: %s; it goes on where it was left", outcome.error().message().c_str());
    ::_exit(kExitFailure);
  }
  VBDKIT_TRY(std::move(outcome));
  return CoalesceOutcome{job->result(), job->children()};
}

int coalesce(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("coalesce [OPTION...] SPEC", {"SPEC"});
  syntax.options.add_options()  //
      ("directory,d", po::value<std::vector<std::string>>()->composing()->value_name("DIR"),
       "where images that stand on it may be too; may be given several times")  //
      ("keep", "leave the image's file where it is");
  add_engine_option(syntax);
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log, [&](const po::variables_map& vm) { return run(vm, log); });
}

}  // namespace vbdkit::storage
