// SPDX-License-Identifier: LGPL-2.1-or-later
//
// BackupJob: copies a running disk as it was at the moment the job began. What a guest is about to
// overwrite is copied before. With a bitmap of changes, only those are copied; in the end the
// bitmap holds what has changed since the job began, or, where it failed, all that it held.
#pragma once

#include <string>

#include "backend/jobs/block_job.h"
#include "backend/jobs/mirror_job.h"
#include "drivers/dirty_bitmap.h"

namespace vbdkit::jobs {

class BackupJob final : public BlockJob {
 public:
  struct Options {
    Sync sync = Sync::kFull;
    std::string bitmap{};       // with kIncremental
    bool clear_bitmap = false;  // of what was copied, when all went well
  };

  static Result<std::unique_ptr<BlockJob>> create(const JobContext& context, JobSettings settings,
                                                  JobTarget target, Options options);

  const char* type() const override { return "backup"; }
  // A snapshot would make another image of what is to be copied.
  bool changes_image() const override { return tied_to_chain(); }

 private:
  struct Flush : drivers::Request {
    BackupJob* job = nullptr;
    Done then;
  };

  BackupJob(const JobContext& context, JobSettings settings, JobTarget target, Options options);
  void attach(Done done) override;
  bool tied_to_chain() const override { return options_.sync == Sync::kTop; }
  std::unique_ptr<drivers::MirrorFilter> make_filter(drivers::NodePtr disk) override;
  bool follows() const override { return false; }
  void finish(Done done) override;
  void flushed(int error);

  JobTarget target_;
  const Options options_;
  drivers::DirtyBitmap* bitmap_ = nullptr;  // while it attaches
  Flush flush_;
};

}  // namespace vbdkit::jobs
