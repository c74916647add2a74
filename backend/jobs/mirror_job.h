// SPDX-License-Identifier: LGPL-2.1-or-later
//
// MirrorJob: moves a running disk to another file, format or server. The target follows all that
// is written; when it has everything the job is ready, and complete() switches the disk over to it
// between two requests. Without complete(), it can be cancelled: the target is then a copy of the
// moment.
#pragma once

#include "backend/jobs/block_job.h"
#include "drivers/patience.h"
#include "drivers/registry.h"

namespace vbdkit::jobs {

// How much of a disk a job brings over.
enum class Sync {
  kFull,
  kTop,          // what the image itself holds, not its parents: the target has those
  kNone,         // what is written from now on
  kIncremental,  // what a bitmap has recorded
};

struct JobTarget {
  drivers::NodePtr node;
  bool zero = false;  // it was made for the job: it reads as zeroes
  // It waits for ever for a server that is lost, but not while guests' writes wait for it.
  drivers::Patience* impatient = nullptr;
};

class MirrorJob final : public BlockJob {
 public:
  static Result<std::unique_ptr<BlockJob>> create(const JobContext& context, JobSettings settings,
                                                  JobTarget target, Sync sync);

  const char* type() const override { return "mirror"; }

 private:
  MirrorJob(const JobContext& context, JobSettings settings, JobTarget target, Sync sync);
  std::unique_ptr<drivers::MirrorFilter> make_filter(drivers::NodePtr disk) override;
  bool tied_to_chain() const override { return sync_ == Sync::kTop; }
  void finish(Done done) override;

  JobTarget target_;
  const Sync sync_;
};

// The target has the disk's size, or gets it where it is smaller; it can be written to.
Result<void> fit_target(drivers::Node& disk, drivers::Node& target);

}  // namespace vbdkit::jobs
