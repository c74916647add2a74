// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit jobs: what runs beside the guests (QMP query-block-jobs), waiting for it, and steering it.
#include <algorithm>
#include <cstdio>

#include "drivers/options.h"
#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/instance_argument.h"
#include "storage/instances.h"
#include "storage/job_wait.h"
#include "storage/table.h"

namespace vbdkit::storage {

namespace {

using control::JsonWriter;

Result<int> show(const std::vector<InstanceRecord>& instances, bool json) {
  using enum Table::Align;
  Table table({{"INSTANCE"},
               {"JOB"},
               {"TYPE"},
               {"STATUS"},
               {"DONE", kRight},
               {"OF", kRight},
               {"LIMIT/s", kRight}});
  Json all = Json::array();
  for (const InstanceRecord& instance : instances) {
    if (!instance.alive) continue;
    auto answer = ask(instance, "query-block-jobs");
    // Of many, one that hangs or is older hides nobody else's.
    if (!answer && instances.size() == 1) return std::move(answer).error();
    if (!answer) continue;
    for (const RunningJob& job : running_jobs(*answer)) {
      table.add({instance.uuid.substr(0, 8), job.id, job.type, job.status, human_size(job.done),
                 human_size(job.total), job.speed == 0 ? "none" : human_size(job.speed)});
      all.push_back({{"instance", instance.uuid},
                     {"id", job.id},
                     {"type", job.type},
                     {"status", job.status},
                     {"done", job.done},
                     {"total", job.total},
                     {"speed", job.speed},
                     {"ready", job.ready}});
    }
  }
  if (json)
    print_json(all);
  else
    std::fputs(table.text().c_str(), stdout);
  return kExitOk;
}

struct Word {
  const char* option;
  const char* command;
  const char* help;
};
constexpr Word kWords[] = {
    {"cancel", "block-job-cancel", "end this job; what it was to do is not done"},
    {"complete", "block-job-complete", "let this job end, which waits for the word"},
    {"pause", "block-job-pause", "hold this job"},
    {"resume", "block-job-resume", "let it go on"},
};

// Whether a word was said.
Result<bool> steer(const po::variables_map& vm, const InstanceRecord& instance) {
  bool any = false;
  for (const Word& word : kWords) {
    if (vm.count(word.option) == 0) continue;
    any = true;
    JsonWriter w;
    w.begin_object().field("device", text_of(vm, word.option)).end_object();
    VBDKIT_TRY(ask(instance, word.command, w.take()));
  }
  if (vm.count("speed") == 0) return any;
  const std::string text = text_of(vm, "speed");
  const size_t equals = text.rfind('=');
  if (equals == text.npos) return usage_error("--speed wants JOB=BYTES, as in --speed job0=20M");
  const auto speed = drivers::parse_size(text.substr(equals + 1));
  if (!speed) return usage_error("--speed: " + speed.error().message());
  JsonWriter w;
  w.begin_object().field("device", text.substr(0, equals)).field("speed", *speed).end_object();
  VBDKIT_TRY(ask(instance, "block-job-set-speed", w.take()));
  return true;
}

Result<int> run(const po::variables_map& vm, const Logger& log) {
  const Registry registry = registry_of(vm);
  std::vector<InstanceRecord> instances;
  const bool one = vm.count("INSTANCE") != 0;
  if (one) {
    VBDKIT_ASSIGN(InstanceRecord named, find_instance(registry, text_of(vm, "INSTANCE"), log));
    instances.push_back(std::move(named));
    VBDKIT_ASSIGN(const bool steered, steer(vm, instances.front()));
    if (vm.count("wait") != 0) {
      VBDKIT_ASSIGN(JobWait wait, JobWait::connect(instances.front()));
      VBDKIT_TRY(wait.run(vm.count("job") != 0 ? text_of(vm, "job") : ""));
      return kExitOk;
    }
    if (steered) return kExitOk;
  } else {
    for (const char* name : {"cancel", "complete", "pause", "resume", "speed", "wait"})
      if (vm.count(name) != 0)
        return usage_error(std::string("--") + name + ": of which instance?");
    VBDKIT_ASSIGN(instances, registry.list());
  }
  return show(instances, vm.count("json") != 0);
}

}  // namespace

int jobs(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("jobs [OPTION...] [INSTANCE]", {}, {"INSTANCE"});
  syntax.options.add_options()                                              //
      ("json", "for programs")                                              //
      ("wait", "until the jobs have ended, or wait for the word to do so")  //
      ("job", po::value<std::string>()->value_name("JOB"), "of --wait: this one alone");
  for (const Word& word : kWords)
    syntax.options.add_options()(word.option, po::value<std::string>()->value_name("JOB"),
                                 word.help);
  syntax.options.add_options()("speed", po::value<std::string>()->value_name("JOB=BYTES"),
                               "per second, at most; 0: no limit");
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log, [&](const po::variables_map& vm) { return run(vm, log); });
}

}  // namespace vbdkit::storage
