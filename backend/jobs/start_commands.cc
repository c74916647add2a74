// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/jobs/start_commands.h"

#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <utility>

#include "backend/jobs/backup_job.h"
#include "backend/jobs/commit_job.h"
#include "backend/jobs/mirror_job.h"
#include "backend/jobs/stream_job.h"
#include "drivers/dirty_bitmap.h"
#include "drivers/image_forest.h"
#include "drivers/image_format.h"
#include "drivers/registry.h"

namespace vbdkit::jobs {

using control::Json;
using control::Reply;

namespace {

constexpr const char* kDevice = "disk";
// So long a guest's write waits for a job's target whose server is lost; then the job ends.
constexpr std::chrono::seconds kTargetPatience{5};

Error invalid(std::string message) { return Error(ErrorKind::kInvalid, std::move(message)); }

// An argument that may have only this value, as nothing else can be done.
Result<void> only(const Json& given, const char* key, std::string_view value) {
  const auto text = given.member(key).string();
  const auto flag = given.member(key).boolean();
  if (given.member(key).is_null() || (text && *text == value) ||
      (flag && (value == "true") == *flag && (value == "true" || value == "false")))
    return {};
  return Error(ErrorKind::kUnsupported,
               std::string("Parameter '") + key + "' can only be " + std::string(value));
}

Result<std::string> required(const Json& given, const char* key) {
  auto value = given.member(key).string();
  if (!value || value->empty()) return invalid(std::string("Parameter '") + key + "' is missing");
  return *std::move(value);
}

// What all jobs take.
constexpr std::string_view kCommon[] = {
    "job-id",          "device",          "target",        "sync",         "speed",
    "on-source-error", "on-target-error", "auto-finalize", "auto-dismiss", "filter-node-name"};

std::vector<std::string_view> with_common(std::initializer_list<std::string_view> more) {
  std::vector<std::string_view> all(std::begin(kCommon), std::end(kCommon));
  all.insert(all.end(), more);
  return all;
}

Result<JobSettings> settings_of(const Json& given, const JobTable& jobs) {
  JobSettings settings;
  settings.id = given.member("job-id").string().value_or(kDevice);
  const std::string device = given.member("device").string().value_or(kDevice);
  if (device != kDevice)
    return Error(ErrorKind::kNotFound,
                 "Cannot find device='" + device + "' nor node-name='" + device + "'");
  if (!given.member("speed").is_null()) {
    const auto speed = given.member("speed").number();
    if (!speed) return invalid("Parameter 'speed' expects a non-negative number");
    settings.speed = *speed;
  }
  settings.auto_dismiss = given.member("auto-dismiss").boolean().value_or(true);
  VBDKIT_TRY(only(given, "auto-finalize", "true"));
  VBDKIT_TRY(only(given, "on-source-error", "report"));
  VBDKIT_TRY(only(given, "on-target-error", "report"));
  VBDKIT_TRY(jobs.admit(settings.id));
  return settings;
}

Result<Sync> sync_of(const Json& given, std::string_view fallback) {
  const std::string name = given.member("sync").string().value_or(std::string(fallback));
  if (name == "full") return Sync::kFull;
  if (name == "top") return Sync::kTop;
  if (name == "none") return Sync::kNone;
  if (name == "incremental") return Sync::kIncremental;
  return invalid("Parameter 'sync' does not accept value '" + name + "'");
}

Result<JobTarget> open_spec(const JobTable& jobs, const std::string& spec) {
  VBDKIT_ASSIGN(const drivers::GraphSpec graph, drivers::parse_graph(spec));
  const JobContext& context = jobs.context();
  JobTarget target;
  VBDKIT_ASSIGN(target.node, drivers::open_graph(graph, {context.reactor, context.log, {}}));
  for (drivers::Node* node = target.node.get(); node != nullptr; node = node->next_node())
    if (auto* const waits = dynamic_cast<drivers::Patience*>(node);
        waits != nullptr && waits->patience().count() == 0) {
      waits->set_patience(kTargetPatience);
      target.impatient = waits;
    }
  return target;
}

std::string top_format(const JobTable& jobs) {
  return std::string(jobs.context().graph.image().driver());
}

std::optional<std::string> parent_of(const JobTable& jobs) {
  const drivers::ChainNode* const chain = jobs.context().graph.chain();
  if (chain == nullptr || chain->chain().paths.size() < 2) return std::nullopt;
  return chain->chain().paths[1];
}

struct FileTarget {
  std::string path;
  std::string spec;
  bool made = false;                  // for the job; a device is not
  std::optional<std::string> parent;  // the disk's, on which it was made
};

// The file of a drive-… command: made where it is wanted so, and then durable.
Result<FileTarget> file_target(const JobTable& jobs, const Json& given, Sync sync) {
  VBDKIT_ASSIGN(const std::string path, required(given, "target"));
  const std::string format = given.member("format").string().value_or(top_format(jobs));
  const std::string mode = given.member("mode").string().value_or("absolute-paths");
  const drivers::ImageFormat* const images = drivers::find_image_format(format);
  if (images == nullptr)
    return invalid("Parameter 'format': '" + format + "' is not known for images");
  FileTarget file;
  file.path = path;
  file.spec = drivers::GraphSpec{{drivers::NodeSpec{format, path, {}}}}.to_string();
  if (mode == "existing") return file;
  if (mode != "absolute-paths")
    return invalid("Parameter 'mode' does not accept value '" + mode + "'");
  const LiveGraph& graph = jobs.context().graph;
  drivers::CreateRequest create;
  create.path = path;
  create.size = graph.image().info().size;
  if (sync == Sync::kTop) {
    file.parent = parent_of(jobs);
    if (!file.parent)
      return invalid("Parameter 'sync': the disk has no parent, so 'top' is all of it");
    create.parent = *file.parent;
    create.parent_format = graph.chain()->chain().layers[1]->info().format;
  }
  if (jobs.context().may_write) VBDKIT_TRY(jobs.context().may_write());
  VBDKIT_TRY(images->create(create));
  struct stat st {};
  if (::stat(path.c_str(), &st) != 0) return Error::from_errno(errno, "open " + path);
  file.made = S_ISREG(st.st_mode);
  if (file.made) VBDKIT_TRY(drivers::sync_directory(drivers::directory_of(path)));
  return file;
}

// A job that lacks but its target.
struct Plan {
  Sync sync = Sync::kFull;
  std::function<Result<void>(JobTarget target)> begin;
};

Result<void> begin_on_file(const JobTable& jobs, const FileTarget& file, const Plan& plan) {
  const auto begin = [&]() -> Result<void> {
    if (file.parent && parent_of(jobs) != file.parent)
      return Error(ErrorKind::kBusy, "the disk's chain has just been changed", EBUSY);
    VBDKIT_ASSIGN(JobTarget target, open_spec(jobs, file.spec));
    target.zero = file.made;
    return plan.begin(std::move(target));
  };
  auto begun = begin();
  if (!begun && file.made) ::unlink(file.path.c_str());
  return begun;
}

void answer(Reply& reply, const Result<void>& result) {
  if (result)
    reply.ok();
  else
    reply.error(result.error());
}

// What was made is nobody's before it is claimed: where that fails, it is not ours to remove.
void start_on_file(JobTable& jobs, const Json& given, Result<Plan> plan, Reply reply) {
  if (!plan) return reply.error(plan.error());
  const JobContext& context = jobs.context();
  auto file = file_target(jobs, given, plan->sync);
  if (!file) return reply.error(file.error());
  if (!file->made || !context.admit) return answer(reply, begin_on_file(jobs, *file, *plan));
  const std::string path = file->path;
  context.admit(path, [&jobs, file = std::move(*file), plan = std::move(*plan),
                       held = std::make_shared<Reply>(std::move(reply))](Result<void> admitted) {
    if (!admitted)
      return held->error(
          std::move(admitted).error().context(file.path + " was made, and is left empty"));
    answer(*held, begin_on_file(jobs, file, plan));
  });
}

void start_on_spec(JobTable& jobs, const Json& given, const Result<Plan>& plan, Reply reply) {
  const auto start = [&]() -> Result<void> {
    if (!plan) return plan.error();
    VBDKIT_ASSIGN(const std::string spec, required(given, "target"));
    VBDKIT_ASSIGN(JobTarget target, open_spec(jobs, spec));
    return plan->begin(std::move(target));
  };
  answer(reply, start());
}

Result<Plan> plan_mirror(JobTable& jobs, const Json& given, bool migrate) {
  VBDKIT_ASSIGN(JobSettings settings, settings_of(given, jobs));
  VBDKIT_TRY(only(given, "copy-mode", "write-blocking"));
  settings.auto_complete = migrate;
  VBDKIT_ASSIGN(const Sync sync, sync_of(given, "full"));
  if (sync == Sync::kIncremental)
    return invalid("Parameter 'sync' of a mirror does not accept value 'incremental'");
  return Plan{sync, [&jobs, settings, sync](JobTarget target) -> Result<void> {
                VBDKIT_TRY(jobs.admit(settings.id));
                VBDKIT_ASSIGN(auto job,
                              MirrorJob::create(jobs.context(), settings, std::move(target), sync));
                jobs.start(std::move(job));
                return {};
              }};
}

Result<Plan> plan_backup(JobTable& jobs, const Json& given) {
  VBDKIT_ASSIGN(JobSettings settings, settings_of(given, jobs));
  VBDKIT_TRY(only(given, "compress", "false"));
  BackupJob::Options options;
  VBDKIT_ASSIGN(options.sync, sync_of(given, "full"));
  if (options.sync == Sync::kNone)
    return Error(ErrorKind::kUnsupported, "Parameter 'sync' can only be full, top or incremental");
  if (options.sync == Sync::kIncremental) {
    VBDKIT_ASSIGN(options.bitmap, required(given, "bitmap"));
    const std::string mode = given.member("bitmap-mode").string().value_or("on-success");
    if (mode != "on-success" && mode != "never")
      return invalid("Parameter 'bitmap-mode' can only be on-success or never");
    options.clear_bitmap = mode == "on-success";
  } else if (!given.member("bitmap").is_null()) {
    return invalid("Parameter 'bitmap' goes with sync=incremental");
  }
  return Plan{options.sync, [&jobs, settings, options](JobTarget target) -> Result<void> {
                VBDKIT_TRY(jobs.admit(settings.id));
                VBDKIT_ASSIGN(auto job, BackupJob::create(jobs.context(), settings,
                                                          std::move(target), options));
                jobs.start(std::move(job));
                return {};
              }};
}

// What lies beneath the disk's own image may be in use by other instances, of which one alone does
// not know: their merging is the command's.
Result<void> check_top(const drivers::ChainNode* chain, const std::string& top) {
  if (chain == nullptr) return invalid("The disk's image has no parent to be merged into");
  const drivers::Chain& images = chain->chain();
  for (size_t i = 0; i < images.paths.size(); ++i) {
    if (top != images.paths[i] && !drivers::same_file(top, images.paths[i])) continue;
    if (i == 0) return {};
    return Error(ErrorKind::kUnsupported,
                 "Parameter 'top' can only be the disk's own image; what lies beneath it is merged "
                 "while guests run by: vbdkit coalesce " +
                     std::string(images.layers[i]->info().format) + ":" + top);
  }
  return Error(ErrorKind::kNotFound, "Parameter 'top': " + top + " is not an image of the disk");
}

Result<void> start_commit(JobTable& jobs, const Json& given) {
  VBDKIT_ASSIGN(JobSettings settings, settings_of(given, jobs));
  VBDKIT_TRY(only(given, "on-error", "report"));
  for (const char* key : {"base-node", "top-node"})
    if (!given.member(key).is_null())
      return Error(ErrorKind::kUnsupported, std::string("Parameter '") + key +
                                                "': parents have no node names here; 'base' and "
                                                "'top' take paths");
  if (const auto top = given.member("top").string())
    VBDKIT_TRY(check_top(jobs.context().graph.chain(), *top));
  VBDKIT_ASSIGN(auto job, CommitJob::create(jobs.context(), std::move(settings),
                                            given.member("base").string().value_or("")));
  jobs.start(std::move(job));
  return {};
}

Result<void> start_stream(JobTable& jobs, const Json& given) {
  VBDKIT_ASSIGN(JobSettings settings, settings_of(given, jobs));
  VBDKIT_TRY(only(given, "on-error", "report"));
  if (!given.member("base-node").is_null())
    return Error(ErrorKind::kUnsupported,
                 "Parameter 'base-node': parents have no node names here; 'base' takes a path");
  const std::string base = given.member("base").string().value_or("");
  const auto recorded = given.member("backing-file").string();
  if (recorded && (base.empty() || !drivers::same_file(*recorded, base)))
    return Error(ErrorKind::kUnsupported, "Parameter 'backing-file' can only be the base");
  VBDKIT_ASSIGN(auto job, StreamJob::create(jobs.context(), std::move(settings), base));
  jobs.start(std::move(job));
  return {};
}

void clear_bitmap(JobTable& jobs, const Json& given, Reply reply) {
  const auto name = required(given, "name");
  if (!name) return reply.error(name.error());
  if (const auto free = jobs.admit("bitmap"); !free) return reply.error(free.error());
  jobs.context().graph.change(
      [name = *name](drivers::NodePtr& top) -> Result<void> {
        drivers::DirtyBitmap* const bitmap = drivers::find_dirty_bitmap(*top, name);
        if (bitmap == nullptr)
          return Error(ErrorKind::kInvalid, "Dirty bitmap '" + name + "' not found");
        return bitmap->clear();
      },
      [held = std::make_shared<Reply>(std::move(reply))](Result<void> result) {
        if (result)
          held->ok();
        else
          held->error(result.error());
      });
}

}  // namespace

void add_start_commands(control::CommandTable& commands, JobTable& jobs) {
  const auto add = [&commands](const char* name, std::vector<std::string_view> arguments,
                               std::function<Result<void>(const Json&)> start) {
    commands.add(name, std::move(arguments),
                 [start = std::move(start)](const Json& given, Reply reply) {
                   answer(reply, start(given));
                 });
  };
  commands.add("blockdev-mirror", with_common({"copy-mode"}),
               [&jobs](const Json& given, Reply reply) {
                 start_on_spec(jobs, given, plan_mirror(jobs, given, false), std::move(reply));
               });
  commands.add("x-vbdkit-migrate", with_common({}), [&jobs](const Json& given, Reply reply) {
    start_on_spec(jobs, given, plan_mirror(jobs, given, true), std::move(reply));
  });
  commands.add("drive-mirror", with_common({"format", "mode", "copy-mode"}),
               [&jobs](const Json& given, Reply reply) {
                 start_on_file(jobs, given, plan_mirror(jobs, given, false), std::move(reply));
               });
  commands.add("blockdev-backup", with_common({"bitmap", "bitmap-mode", "compress"}),
               [&jobs](const Json& given, Reply reply) {
                 start_on_spec(jobs, given, plan_backup(jobs, given), std::move(reply));
               });
  commands.add("drive-backup", with_common({"format", "mode", "bitmap", "bitmap-mode", "compress"}),
               [&jobs](const Json& given, Reply reply) {
                 start_on_file(jobs, given, plan_backup(jobs, given), std::move(reply));
               });
  add("block-commit",
      {"job-id", "device", "base", "base-node", "top", "top-node", "speed", "on-error",
       "filter-node-name", "auto-finalize", "auto-dismiss"},
      [&jobs](const Json& given) { return start_commit(jobs, given); });
  add("block-stream",
      {"job-id", "device", "base", "base-node", "backing-file", "speed", "on-error",
       "filter-node-name", "auto-finalize", "auto-dismiss"},
      [&jobs](const Json& given) { return start_stream(jobs, given); });
  commands.add(
      "block-dirty-bitmap-clear", {"node", "name"},
      [&jobs](const Json& given, Reply reply) { clear_bitmap(jobs, given, std::move(reply)); });
}

}  // namespace vbdkit::jobs
