// SPDX-License-Identifier: LGPL-2.1-or-later
//
// JobTable: the jobs of one instance, and the QMP commands that look at them and steer them; with
// QEMU's names, arguments and results (qapi/job.json, qapi/block-core.json). Jobs belong to the
// instance, not to the connection that began them. All of them change the one graph, so one runs at
// a time, and another that is asked for is refused with the first one's name.
// Thread: the reactor's. Ownership: the instance's; it goes before the graph.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/control/qmp_server.h"
#include "backend/jobs/block_job.h"

namespace vbdkit::jobs {

class JobTable {
 public:
  explicit JobTable(JobContext context) : context_(std::move(context)) {}
  JobTable(const JobTable&) = delete;
  JobTable& operator=(const JobTable&) = delete;

  const JobContext& context() const { return context_; }

  // Why no job of that name may begin now, if so.
  Result<void> admit(const std::string& id) const;
  void start(std::unique_ptr<BlockJob> job);
  // The job that runs, or nullptr: who changes the graph by himself asks first.
  const BlockJob* running() const;

  void add_commands(control::CommandTable& commands);

  // Cancels what runs; `done` is called from the loop when nothing does. No job begins any more.
  void shutdown(std::function<void()> done);

 private:
  using Steer = Result<void> (*)(BlockJob& job, const control::Json& arguments);

  BlockJob* find(const std::string& id) const;
  void add_steering(control::CommandTable& commands, const char* block_name, const char* job_name,
                    std::vector<std::string_view> more, Steer steer);
  void ended(BlockJob* job);
  void dismiss(const BlockJob& job);

  JobContext context_;
  std::vector<std::unique_ptr<BlockJob>> jobs_;
  std::function<void()> closed_;
  bool closing_ = false;
};

}  // namespace vbdkit::jobs
