// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/jobs/job_table.h"

#include <algorithm>
#include <utility>

namespace vbdkit::jobs {

using control::Json;
using control::JsonWriter;
using control::Reply;

BlockJob* JobTable::find(const std::string& id) const {
  const auto found = std::find_if(jobs_.begin(), jobs_.end(),
                                  [&](const auto& job) { return job->settings().id == id; });
  return found == jobs_.end() ? nullptr : found->get();
}

const BlockJob* JobTable::running() const {
  const auto found =
      std::find_if(jobs_.begin(), jobs_.end(), [](const auto& job) { return !job->concluded(); });
  return found == jobs_.end() ? nullptr : found->get();
}

Result<void> JobTable::admit(const std::string& id) const {
  if (closing_) return Error(ErrorKind::kBusy, "The instance is shutting down");
  if (const BlockJob* other = running())
    return Error(ErrorKind::kBusy, "Job '" + other->settings().id + "' (" + other->type() +
                                       ") runs on this disk; wait for its end or cancel it");
  if (id.empty()) return Error(ErrorKind::kInvalid, "Invalid job ID ''");
  if (find(id) != nullptr)
    return Error(ErrorKind::kBusy, "Job ID '" + id + "' already in use; job-dismiss forgets it");
  return {};
}

void JobTable::start(std::unique_ptr<BlockJob> job) {
  BlockJob* const started = job.get();
  if (job->changes_image())
    context_.graph.reserve("Job '" + job->settings().id + "' (" + job->type() + ")");
  jobs_.push_back(std::move(job));
  started->start([this, started] { ended(started); });
}

void JobTable::ended(BlockJob* job) {
  if (job->changes_image()) context_.graph.release();
  if (job->settings().auto_dismiss) dismiss(*job);
  if (closing_ && running() == nullptr && closed_) std::exchange(closed_, nullptr)();
}

void JobTable::dismiss(const BlockJob& job) {
  const auto found = std::find_if(jobs_.begin(), jobs_.end(),
                                  [&](const auto& other) { return other.get() == &job; });
  const std::unique_ptr<BlockJob> gone = std::move(*found);
  jobs_.erase(found);
  gone->dismiss();
}

void JobTable::shutdown(std::function<void()> done) {
  closing_ = true;
  closed_ = std::move(done);
  for (const auto& job : jobs_)
    // One that ends already needs no word.
    if (!job->concluded()) (void)job->cancel(true);
  if (running() == nullptr) context_.reactor.post(std::exchange(closed_, nullptr));
}

void JobTable::add_steering(control::CommandTable& commands, const char* block_name,
                            const char* job_name, std::vector<std::string_view> more, Steer steer) {
  const auto add = [&](const char* name, const char* key, bool block) {
    std::vector<std::string_view> arguments = more;
    arguments.push_back(key);
    commands.add(
        name, std::move(arguments), [this, key, block, steer](const Json& given, Reply reply) {
          const auto id = given.member(key).string();
          if (!id)
            return reply.error("GenericError", std::string("Parameter '") + key + "' is missing");
          BlockJob* const job = find(*id);
          if (job == nullptr)
            return reply.error(
                block ? "DeviceNotActive" : "GenericError",
                block ? "No active block job on device '" + *id + "'" : "Job not found");
          const auto steered = steer(*job, given);
          if (!steered) return reply.error("GenericError", steered.error().message());
          reply.ok();
        });
  };
  if (block_name != nullptr) add(block_name, "device", true);
  if (job_name != nullptr) add(job_name, "id", false);
}

void JobTable::add_commands(control::CommandTable& commands) {
  const auto query = [this, &commands](const char* name,
                                       void (BlockJob::*write)(JsonWriter&) const) {
    commands.add(name, {}, [this, write](const Json&, Reply reply) {
      JsonWriter w;
      w.begin_array();
      for (const auto& job : jobs_) (*job.*write)(w);
      w.end_array();
      reply.value(w.take());
    });
  };
  query("query-jobs", &BlockJob::write_info);
  query("query-block-jobs", &BlockJob::write_block_info);
  add_steering(commands, "block-job-pause", "job-pause", {},
               [](BlockJob& job, const Json&) { return job.pause(); });
  add_steering(commands, "block-job-resume", "job-resume", {},
               [](BlockJob& job, const Json&) { return job.resume(); });
  add_steering(commands, "block-job-complete", "job-complete", {},
               [](BlockJob& job, const Json&) { return job.complete(); });
  add_steering(commands, "block-job-cancel", nullptr, {"force"},
               [](BlockJob& job, const Json& given) {
                 return job.cancel(given.member("force").boolean().value_or(false));
               });
  add_steering(commands, nullptr, "job-cancel", {},
               [](BlockJob& job, const Json&) { return job.cancel(true); });
  add_steering(commands, "block-job-set-speed", nullptr, {"speed"},
               [](BlockJob& job, const Json& given) -> Result<void> {
                 const auto speed = given.member("speed").number();
                 if (!speed)
                   return Error(ErrorKind::kInvalid,
                                "Parameter 'speed' expects a non-negative number");
                 return job.set_speed(*speed);
               });
  for (const char* name : {"job-dismiss", "block-job-dismiss"})
    commands.add(name, {"id"}, [this](const Json& given, Reply reply) {
      const auto id = given.member("id").string();
      BlockJob* const job = id ? find(*id) : nullptr;
      if (job == nullptr) return reply.error("GenericError", "Job not found");
      if (!job->concluded())
        return reply.error("GenericError", "Job '" + *id + "' in state '" +
                                               to_string(job->status()) +
                                               "' cannot accept command verb 'dismiss'");
      dismiss(*job);
      reply.ok();
    });
}

}  // namespace vbdkit::jobs
