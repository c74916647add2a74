// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/jobs/mirror_job.h"

#include <utility>

namespace vbdkit::jobs {

using drivers::MirrorFilter;
using drivers::MirrorOptions;

Result<void> fit_target(drivers::Node& disk, drivers::Node& target) {
  const Bytes size = disk.info().size;
  if (!target.info().read_only && target.info().size < size) VBDKIT_TRY(target.resize(size));
  VBDKIT_TRY(MirrorFilter::check(disk, target));
  if (target.info().size != size)
    return Error(ErrorKind::kInvalid, target.spec() + " has " +
                                          std::to_string(target.info().size.v) +
                                          " bytes and the disk " + std::to_string(size.v) +
                                          "; a guest's disk keeps its size");
  return {};
}

Result<std::unique_ptr<BlockJob>> MirrorJob::create(const JobContext& context, JobSettings settings,
                                                    JobTarget target, Sync sync) {
  VBDKIT_TRY(fit_target(context.graph.image(), *target.node));
  return std::unique_ptr<BlockJob>(
      new MirrorJob(context, std::move(settings), std::move(target), sync));
}

MirrorJob::MirrorJob(const JobContext& context, JobSettings settings, JobTarget target, Sync sync)
    : BlockJob(context, std::move(settings)), target_(std::move(target)), sync_(sync) {}

std::unique_ptr<MirrorFilter> MirrorJob::make_filter(drivers::NodePtr disk) {
  MirrorOptions options;
  options.own_only = sync_ == Sync::kTop;
  options.target_zero = target_.zero && sync_ == Sync::kFull;
  const uint64_t size = disk->info().size.v;
  auto filter =
      std::make_unique<MirrorFilter>(std::move(disk), *target_.node, options, on_target_failed());
  if (sync_ != Sync::kNone) filter->mark(0, size);
  return filter;
}

// What becomes the disk waits for its server as disks do.
void MirrorJob::finish(Done done) {
  const auto last = [this](drivers::NodePtr&) -> Result<void> {
    if (target_.impatient != nullptr) target_.impatient->set_patience({});
    return {};
  };
  replace(target_.node, last, std::move(done));
}

}  // namespace vbdkit::jobs
