// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/jobs/stream_job.h"

#include <utility>

#include "drivers/chain/chain_node.h"
#include "drivers/file_lock.h"
#include "drivers/image_format.h"
#include "drivers/jobs/coalesce_journal.h"

namespace vbdkit::jobs {

using drivers::ChainNode;
using drivers::ChainRefresh;
using drivers::CoalesceJournal;
using drivers::MirrorFilter;
using drivers::MirrorOptions;

namespace {

// An internal snapshot stands on the parents as the image does, and would lose them.
Result<void> check_snapshots(const ChainNode& chain) {
  const std::string& path = chain.chain().paths.front();
  const auto* const format = drivers::find_image_format(chain.chain().leaf().info().format);
  if (format == nullptr) return {};
  VBDKIT_ASSIGN(const drivers::ImageFacts facts, format->inspect(path));
  if (facts.snapshots.empty()) return {};
  return Error(ErrorKind::kUnsupported,
               path + " has internal snapshots, which stand on its parents too");
}

// The disk would stand on an image that has only a part of what is being merged into it, and
// whoever ends that merge would find somebody there who did not come with it.
Result<void> check_merging(const ChainNode& chain, size_t base) {
  if (base < 2) return {};
  const std::string& above = chain.chain().paths[base - 1];
  VBDKIT_ASSIGN(const auto journal, CoalesceJournal::load(CoalesceJournal::path_for(above)));
  const bool unfinished = journal && journal->stage == CoalesceJournal::Stage::kCopy;
  if (!unfinished && !drivers::is_merging(above)) return {};
  return drivers::merge_unfinished(above, chain.chain().paths[base]);
}

}  // namespace

Result<std::unique_ptr<BlockJob>> StreamJob::create(const JobContext& context, JobSettings settings,
                                                    const std::string& base) {
  const ChainNode* const chain = context.graph.chain();
  if (chain == nullptr)
    return Error(ErrorKind::kInvalid, "The disk's image is of a format that has no parents");
  if (chain->info().read_only) return Error(ErrorKind::kPermission, "The disk is read-only", EROFS);
  VBDKIT_TRY(check_snapshots(*chain));
  std::optional<Base> stays;
  const auto& images = chain->chain();
  for (size_t i = 1; i < images.paths.size() && !base.empty() && !stays; ++i) {
    if (drivers::same_file(images.paths[i], base))
      stays = Base{i, images.paths[i], images.layers[i]->info().format};
  }
  if (!base.empty() && !stays)
    return Error(ErrorKind::kNotFound,
                 "Parameter 'base': " + base + " is not beneath " + images.paths.front());
  if (stays) VBDKIT_TRY(check_merging(*chain, stays->at));
  return std::unique_ptr<BlockJob>(new StreamJob(context, std::move(settings), std::move(stays)));
}

std::unique_ptr<MirrorFilter> StreamJob::make_filter(drivers::NodePtr disk) {
  MirrorOptions options;
  options.mode = MirrorOptions::Mode::kPullIn;
  if (base_) options.pulled_images = base_->at;
  const auto* const chain = dynamic_cast<const ChainNode*>(disk.get());
  options.gaps = chain != nullptr && chain->chain().leaf().info().gaps;
  const bool parents = chain != nullptr && chain->chain().layers.size() > 1;
  const uint64_t size = disk->info().size.v;
  drivers::Node& target = *disk;
  auto filter =
      std::make_unique<MirrorFilter>(std::move(disk), target, options, on_target_failed());
  if (parents) filter->mark(0, size);
  return filter;
}

Result<std::unique_ptr<ChainRefresh>> StreamJob::new_chain() const {
  ChainNode* const chain = context().graph.chain();
  const drivers::OpenContext opening{context().reactor, context().log, {}};
  if (!base_) return std::make_unique<ChainRefresh>(*chain, opening, ChainRefresh::NoParent{});
  drivers::ParentReference parent;
  parent.path = base_->path;
  parent.tried = {parent.path};
  parent.format = base_->format;
  return std::make_unique<ChainRefresh>(*chain, opening, parent);
}

void StreamJob::finish(Done done) {
  const auto refresh = std::make_shared<std::unique_ptr<ChainRefresh>>();
  take_out({
               .prepare =
                   [this, refresh](Done ready) {
                     auto made = new_chain();
                     if (!made) return ready(std::move(made).error());
                     *refresh = std::move(*made);
                     LiveGraph::take_steps(context().reactor, refresh, std::move(ready));
                   },
               // All that was pulled in is durable before the parents are let go.
               .flush = true,
               .apply = [this, refresh](drivers::NodePtr&) -> Result<void> {
                 if (filter()->failure()) return *filter()->failure();
                 if (base_) VBDKIT_TRY(check_merging(*context().graph.chain(), base_->at));
                 if (context().may_write) VBDKIT_TRY(context().may_write());
                 return (*refresh)->apply();
               },
           },
           std::move(done));
}

}  // namespace vbdkit::jobs
