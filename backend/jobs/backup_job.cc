// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/jobs/backup_job.h"

#include <utility>

#include "drivers/dirty_bitmap.h"

namespace vbdkit::jobs {

using drivers::DirtyBitmap;
using drivers::MirrorFilter;
using drivers::MirrorOptions;
using drivers::NodePtr;

namespace {

Error no_bitmap(const std::string& name) {
  return Error(ErrorKind::kNotFound, "Bitmap '" + name + "' not found");
}

std::vector<DirtyBitmap::Range> marked_ranges(const drivers::ChunkBitmap& map) {
  std::vector<DirtyBitmap::Range> ranges;
  uint64_t at = 0;
  while (const auto run = map.next(at, map.size())) {
    ranges.push_back({run->offset, run->length});
    at = run->offset + run->length;
  }
  return ranges;
}

}  // namespace

Result<std::unique_ptr<BlockJob>> BackupJob::create(const JobContext& context, JobSettings settings,
                                                    JobTarget target, Options options) {
  VBDKIT_TRY(fit_target(context.graph.image(), *target.node));
  if (options.sync == Sync::kIncremental &&
      drivers::find_dirty_bitmap(context.graph.top(), options.bitmap) == nullptr)
    return no_bitmap(options.bitmap);
  return std::unique_ptr<BlockJob>(
      new BackupJob(context, std::move(settings), std::move(target), std::move(options)));
}

BackupJob::BackupJob(const JobContext& context, JobSettings settings, JobTarget target,
                     Options options)
    : BlockJob(context, std::move(settings)),
      target_(std::move(target)),
      options_(std::move(options)) {
  flush_.job = this;
}

std::unique_ptr<MirrorFilter> BackupJob::make_filter(NodePtr disk) {
  MirrorOptions options;
  options.mode = MirrorOptions::Mode::kBeforeWrite;
  options.own_only = options_.sync == Sync::kTop;
  options.target_zero = target_.zero && options_.sync == Sync::kFull;
  const uint64_t size = disk->info().size.v;
  auto filter =
      std::make_unique<MirrorFilter>(std::move(disk), *target_.node, options, on_target_failed());
  if (options_.sync != Sync::kIncremental) {
    filter->mark(0, size);
    return filter;
  }
  // Looked up before the disk was taken out of the graph: it is one of the filters above.
  for (uint64_t at = 0; at < size;) {
    const DirtyBitmap::Run run = bitmap_->run_at(at, size);
    if (run.dirty) filter->mark(at, run.length);
    at += run.length;
  }
  return filter;
}

void BackupJob::attach(Done done) {
  context().graph.change(
      [this](NodePtr& top) -> Result<void> {
        bitmap_ = nullptr;
        if (options_.sync == Sync::kIncremental) {
          bitmap_ = drivers::find_dirty_bitmap(*top, options_.bitmap);
          if (bitmap_ == nullptr) return no_bitmap(options_.bitmap);
        }
        return put_above_image(top);
      },
      std::move(done));
}

void BackupJob::finish(Done done) {
  flush_.op = drivers::Op::kFlush;
  flush_.then = std::move(done);
  flush_.done = [](drivers::Request& request, int error) {
    BackupJob& job = *static_cast<Flush&>(request).job;
    job.context().reactor.post([&job, error] { job.flushed(error); });
  };
  target_.node->submit(flush_);
}

void BackupJob::flushed(int error) {
  const Done done = std::exchange(flush_.then, nullptr);
  if (error != 0) return done(Error::from_errno(error, "flush " + target_.node->spec()));
  const auto last = [this](NodePtr& top) -> Result<void> {
    if (filter()->failure()) return *filter()->failure();
    if (!options_.clear_bitmap) return {};
    DirtyBitmap* const bitmap = drivers::find_dirty_bitmap(*top, options_.bitmap);
    return bitmap == nullptr ? no_bitmap(options_.bitmap)
                             : bitmap->keep_only(marked_ranges(filter()->changed()));
  };
  take_out({.apply = last}, done);
}

}  // namespace vbdkit::jobs
