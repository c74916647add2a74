// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/job_wait.h"

#include <algorithm>
#include <chrono>

#include "storage/instance_argument.h"

namespace vbdkit::storage {

std::vector<RunningJob> running_jobs(const control::Json& answer) {
  std::vector<RunningJob> jobs;
  for (size_t i = 0; i < answer.size(); ++i) {
    const control::Json job = answer.at(i);
    const auto text = [&](const char* key) { return job.member(key).string().value_or(""); };
    const auto number = [&](const char* key) { return job.member(key).number().value_or(0); };
    jobs.push_back({.id = text("device"),
                    .type = text("type"),
                    .status = text("status"),
                    .done = number("offset"),
                    .total = number("len"),
                    .speed = number("speed"),
                    .ready = job.member("ready").boolean().value_or(false)});
  }
  return jobs;
}

Result<JobWait> JobWait::connect(const InstanceRecord& instance) {
  VBDKIT_ASSIGN(auto client, control::QmpClient::connect(instance.qmp_socket()));
  return JobWait(std::move(client), title_of(instance));
}

Result<void> JobWait::start(std::string_view command, std::string_view arguments) {
  VBDKIT_ASSIGN(const auto answer, client_.execute(command, arguments));
  started_ = true;
  return {};
}

Result<void> JobWait::run(const std::string& id) {
  constexpr std::chrono::milliseconds kGlance{500};
  VBDKIT_TRY(look());
  if (!id.empty() && !started_ && !jobs_.contains(id))
    return Error(ErrorKind::kNotFound, "no job " + id + " runs there");
  // What has been heard already tells how the one ended that is not there any more.
  for (bool last = false; !last;) {
    last = std::none_of(jobs_.begin(), jobs_.end(), [&](const auto& entry) {
      return !entry.second.ready && (id.empty() || entry.first == id);
    });
    const auto event = client_.event(last ? std::chrono::milliseconds(0) : kGlance);
    if (event) {
      VBDKIT_TRY(hear(*event));
      last = false;
    } else if (event.error().kind() != ErrorKind::kTimedOut) {
      return event.error();
    }
    if (!last) VBDKIT_TRY(look());
  }
  return {};
}

Result<void> JobWait::look() {
  VBDKIT_ASSIGN(const auto answer, client_.execute("query-block-jobs"));
  jobs_.clear();
  uint64_t done = 0, total = 0;
  for (RunningJob& job : running_jobs(answer)) {
    done += job.done;
    total += job.total;
    jobs_.emplace(job.id, std::move(job));
  }
  progress_->show(done, std::max<uint64_t>(total, 1));
  return {};
}

Result<void> JobWait::hear(const control::Json& event) {
  const auto name = event.member("event").string();
  const auto data = event.member("data");
  const auto error = data.member("error").string();
  const bool cancelled = started_ && name == "BLOCK_JOB_CANCELLED";
  if (!cancelled && (name != "BLOCK_JOB_COMPLETED" || !error)) return {};
  progress_->clear();
  return Error(ErrorKind::kIo, "job " + data.member("device").string().value_or("") + ": " +
                                   (cancelled ? "it was cancelled" : *error));
}

}  // namespace vbdkit::storage
