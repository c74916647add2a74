// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit stream: what an image holds only in its parents, pulled into it, by the instance that has
// it open, or here where none has.
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "backend/jobs/stream_job.h"
#include "drivers/options.h"
#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/instance_argument.h"
#include "storage/job_runner.h"
#include "storage/job_wait.h"
#include "storage/terminal.h"

namespace vbdkit::storage {
namespace {

constexpr const char* kJob = "disk";  // as instances call it

struct Wanted {
  drivers::NodeSpec image;
  std::string base;    // path, or ""
  uint64_t speed = 0;  // bytes a second
};

Result<Wanted> wanted(const po::variables_map& vm) {
  Wanted what;
  VBDKIT_ASSIGN(what.image, parse_image(text_of(vm, "SPEC")));
  if (vm.count("base") != 0) {
    const std::string base = text_of(vm, "base");
    const size_t colon = base.find(':');
    // A path, or a spec as the images themselves are named.
    if (colon != base.npos && drivers::find_image_format(base.substr(0, colon)) != nullptr) {
      VBDKIT_ASSIGN(const auto spec, parse_image(base));
      what.base = spec.path;
    } else {
      what.base = base;
    }
    std::error_code error;
    what.base = std::filesystem::absolute(what.base, error).string();
  }
  if (vm.count("speed") != 0) {
    const auto speed = drivers::parse_size(text_of(vm, "speed"));
    if (!speed) return usage_error("--speed: " + speed.error().message());
    what.speed = *speed;
  }
  return what;
}

Result<void> stream_live(const InstanceRecord& instance, const Wanted& what, bool wait) {
  VBDKIT_ASSIGN(JobWait job, JobWait::connect(instance));
  control::JsonWriter w;
  w.begin_object().field("device", kJob).field("job-id", kJob);
  if (!what.base.empty()) w.field("base", what.base);
  w.field("speed", what.speed).end_object();
  VBDKIT_TRY(job.start("block-stream", w.take()));
  if (!wait) return {};
  return job.run(kJob);
}

// The job of an instance, on a disk that only it uses.
class OwnStream final : public drivers::Job {
 public:
  OwnStream(JobRunner& runner, const Logger& log, drivers::NodePtr node)
      : graph_(runner.reactor(), std::move(node)),
        context_{
            runner.reactor(), log, graph_, [](std::string_view, std::string_view) {},
            [&runner] { return runner.claims() ? runner.claims()->may_write() : Result<void>(); }} {
  }

  uint64_t settled() const override { return job_ ? job_->offset() : 0; }
  uint64_t total() const override { return job_ ? std::max<uint64_t>(job_->length(), 1) : 1; }
  void cancel() override {
    // Where it is ending already, that is waited for.
    if (job_) static_cast<void>(job_->cancel(true));
  }

  Result<void> create(const Wanted& what) {
    VBDKIT_ASSIGN(job_,
                  jobs::StreamJob::create(context_, {.id = kJob, .speed = what.speed}, what.base));
    return {};
  }
  void start(std::function<void(Result<void>)> ended) {
    job_->start([this, ended = std::move(ended)] {
      if (job_->error()) return ended(*job_->error());
      if (job_->cancelled())
        return ended(Error(ErrorKind::kIo, "interrupted; what was pulled in stays", ECANCELED));
      ended({});
    });
  }

 private:
  LiveGraph graph_;
  jobs::JobContext context_;
  std::unique_ptr<jobs::BlockJob> job_;
};

Result<void> stream_here(const Wanted& what, io::EngineKind engine, const Logger& log) {
  VBDKIT_ASSIGN(const auto runner, JobRunner::create(engine, log));
  VBDKIT_ASSIGN(auto node, runner->open({{what.image}}, false));
  Result<void> outcome;
  OwnStream stream(*runner, log, std::move(node));
  VBDKIT_TRY(stream.create(what));
  VBDKIT_TRY(runner->run("stream", stream, [&] {
    stream.start([&](Result<void> result) {
      outcome = std::move(result);
      runner->finished();
    });
  }));
  if (!outcome && runner->must_let_go()) {
    log.error("stream: %s", outcome.error().message().c_str());
    ::_exit(kExitFailure);
  }
  return outcome;
}

Result<int> run(const po::variables_map& vm, const Logger& log) {
  VBDKIT_ASSIGN(const Wanted what, wanted(vm));
  VBDKIT_ASSIGN(const io::EngineKind engine, engine_of(vm));
  VBDKIT_ASSIGN(const auto users,
                registry_of(vm).find_image(what.image.path, Registry::Where::kLeaf));
  for (const InstanceRecord& user : users) {
    if (user.read_only) continue;
    VBDKIT_TRY(stream_live(user, what, vm.count("no-wait") == 0));
    return kExitOk;
  }
  if (vm.count("no-wait") != 0)
    return usage_error("--no-wait: no instance runs that could go on by itself");
  VBDKIT_TRY(stream_here(what, engine, log));
  return kExitOk;
}

}  // namespace

int stream(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("stream [OPTION...] SPEC", {"SPEC"});
  syntax.options.add_options()  //
      ("base", po::value<std::string>()->value_name("PARENT"),
       "stays beneath the image; else nothing does")  //
      ("speed", po::value<std::string>()->value_name("BYTES"),
       "per second, at most")  //
      ("no-wait", "leave it to the instance, which goes on by itself");
  add_engine_option(syntax);
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log, [&](const po::variables_map& vm) { return run(vm, log); });
}

}  // namespace vbdkit::storage
