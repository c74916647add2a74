// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit compare: whether two disks read the same.
#include "drivers/jobs/compare_job.h"

#include <cstdio>

#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/job_runner.h"
#include "storage/terminal.h"

namespace vbdkit::storage {
namespace {

int answer(const po::variables_map& vm, std::optional<uint64_t> difference, bool sizes_differ) {
  const bool same = !difference && !(sizes_differ && vm.count("strict") != 0);
  if (vm.count("json") != 0) {
    Json json = {{"identical", same}, {"sizes-differ", sizes_differ}};
    if (difference) json["offset"] = *difference;
    print_json(json);
  } else if (difference) {
    std::printf("differ at byte %llu\n", static_cast<unsigned long long>(*difference));
  } else if (sizes_differ) {
    std::puts(same ? "identical, but for zeroes at the end of the longer one"
                   : "sizes differ; the rest is zeroes");
  } else {
    std::puts("identical");
  }
  return same ? kExitOk : kExitDifferent;
}

Result<int> run(const po::variables_map& vm, const Logger& log) {
  VBDKIT_ASSIGN(const drivers::GraphSpec first, drivers::parse_graph(text_of(vm, "A")));
  VBDKIT_ASSIGN(const drivers::GraphSpec second, drivers::parse_graph(text_of(vm, "B")));
  VBDKIT_ASSIGN(const io::EngineKind engine, engine_of(vm));
  VBDKIT_ASSIGN(const auto runner, JobRunner::create(engine, log));
  VBDKIT_ASSIGN(const drivers::NodePtr a, runner->open(first, true));
  VBDKIT_ASSIGN(const drivers::NodePtr b, runner->open(second, true));
  drivers::CompareJob job(*a, *b, {});
  drivers::CompareJob::Answer outcome{std::optional<uint64_t>()};
  VBDKIT_TRY(runner->run("compare", job, [&] {
    job.start([&](drivers::CompareJob::Answer result) {
      outcome = std::move(result);
      runner->finished();
    });
  }));
  VBDKIT_ASSIGN(const std::optional<uint64_t> difference, std::move(outcome));
  return answer(vm, difference, a->info().size != b->info().size);
}

}  // namespace

int compare(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("compare [OPTION...] A B", {"A", "B"});
  syntax.options.add_options()                                         //
      ("strict", "disks of different size are different in any case")  //
      ("json", "for programs");
  add_engine_option(syntax);
  return run_command(syntax, args, log, [&](const po::variables_map& vm) { return run(vm, log); });
}

}  // namespace vbdkit::storage
