// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The jobs of a running instance as the command line sees them, and waiting for their end. Blocks;
// one owner.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/control/json.h"
#include "backend/control/qmp_client.h"
#include "storage/progress.h"
#include "storage/registry.h"

namespace vbdkit::storage {

struct RunningJob {
  std::string id;
  std::string type;
  std::string status;
  uint64_t done = 0;  // bytes
  uint64_t total = 0;
  uint64_t speed = 0;  // bytes per second; 0: as fast as it can
  bool ready = false;  // waits for the word to end
};

// Of an answer to query-block-jobs.
std::vector<RunningJob> running_jobs(const control::Json& answer);

// Hears of jobs from when it is made on.
class JobWait {
 public:
  static Result<JobWait> connect(const InstanceRecord& instance);

  // Starts a job by this command, on the connection that hears of it.
  Result<void> start(std::string_view command, std::string_view arguments);
  // Until each of the jobs, or that one, has ended, or waits for the word to end. A progress bar
  // meanwhile.
  Result<void> run(const std::string& id);

 private:
  JobWait(control::QmpClient client, const std::string& title)
      : client_(std::move(client)), progress_(std::make_unique<Progress>(title)) {}
  Result<void> look();
  Result<void> hear(const control::Json& event);

  control::QmpClient client_;
  std::unique_ptr<Progress> progress_;
  std::map<std::string, RunningJob> jobs_;
  bool started_ = false;
};

}  // namespace vbdkit::storage
