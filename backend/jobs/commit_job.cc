// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/jobs/commit_job.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "drivers/chain/chain_node.h"
#include "drivers/image_forest.h"
#include "drivers/image_format.h"
#include "drivers/jobs/coalesce_journal.h"

namespace vbdkit::jobs {

using drivers::ChainNode;
using drivers::MirrorFilter;
using drivers::MirrorOptions;
using drivers::NodePtr;
using drivers::NodeSpec;
using drivers::same_file;

Result<std::unique_ptr<BlockJob>> CommitJob::create(const JobContext& context, JobSettings settings,
                                                    const std::string& base) {
  const ChainNode* const chain = context.graph.chain();
  if (chain == nullptr || chain->chain().paths.size() < 2)
    return Error(ErrorKind::kInvalid, "The disk's image has no parent to be merged into");
  if (chain->info().read_only) return Error(ErrorKind::kPermission, "The disk is read-only", EROFS);
  const NodeSpec& leaf = chain->options().image;
  const auto& paths = chain->chain().paths;
  if (base.empty() ? paths.size() > 2 : !same_file(base, paths[1]))
    return Error(ErrorKind::kUnsupported, "Parameter 'base' can only be the parent " + paths[1]);
  NodeSpec parent = leaf;
  parent.driver = chain->chain().layers[1]->info().format;
  parent.path = paths[1];
  if (parent.driver != leaf.driver)
    return Error(ErrorKind::kUnsupported, "The parent " + parent.path + " has the format " +
                                              parent.driver + " and could not take the place of " +
                                              leaf.path);
  if (!same_file(drivers::directory_of(parent.path), drivers::directory_of(leaf.path)))
    return Error(ErrorKind::kUnsupported, "The parent " + parent.path +
                                              " lies in another directory and could not take the "
                                              "name of " +
                                              leaf.path);
  if (chain->chain().layers[1]->info().size > chain->info().size)
    return Error(ErrorKind::kUnsupported,
                 "The parent " + parent.path + " has a larger disk than " + leaf.path);
  return std::unique_ptr<BlockJob>(
      new CommitJob(context, std::move(settings), leaf, std::move(parent)));
}

CommitJob::CommitJob(const JobContext& context, JobSettings settings, NodeSpec leaf,
                     NodeSpec parent)
    : BlockJob(context, std::move(settings)),
      leaf_(std::move(leaf)),
      parent_(std::move(parent)),
      beside_(context.reactor) {
  flush_.job = this;
  sync_.job = this;
}

CommitJob::~CommitJob() {
  if (target_ != nullptr) give_back_the_lock();  // else it was never opened, or is the disk by now
}

void CommitJob::give_back_the_lock() {
  target_.reset();  // its lock goes first
  opening_.reset();
  const auto disk = chain();
  if (!disk) return;
  if (const auto taken = (*disk)->chain().layers[1]->file().share(drivers::Sharing::kAsOpened);
      !taken)
    context().log.warning("%s", taken.error().message().c_str());
}

// The chain as it was when the job was asked for.
Result<ChainNode*> CommitJob::chain() const {
  ChainNode* const chain = context().graph.chain();
  if (chain == nullptr || chain->chain().paths.size() < 2 ||
      chain->chain().paths[0] != leaf_.path || chain->chain().paths[1] != parent_.path)
    return Error(ErrorKind::kBusy, "the disk's chain has just been changed", EBUSY);
  return chain;
}

// Whoever else stands on the parent would read something else. Beside the loop: a directory may
// hold many images.
Result<void> CommitJob::look_for_siblings() const {
  VBDKIT_ASSIGN(const auto forest, drivers::ImageForest::scan(drivers::directory_of(parent_.path)));
  for (const drivers::ForestImage* child : forest.children_of(parent_.path))
    if (!same_file(child->path, leaf_.path))
      return drivers::parent_of_another(parent_.path, child->path);
  for (const std::string& child : forest.disguised_children_of(parent_.path))
    if (!same_file(child, leaf_.path)) return drivers::parent_of_disguised(parent_.path, child);
  return {};
}

void CommitJob::attach(Done done) {
  context().graph.change({
      .prepare =
          [this](Done ready) {
            beside_.run([this] { return look_for_siblings(); },
                        [this, ready = std::move(ready)](Result<void> alone) {
                          if (alone)
                            open_parent(ready);
                          else
                            ready(std::move(alone));
                        });
          },
      .apply = [this](NodePtr& top) { return put_above_image(top); },
      .done = std::move(done),
  });
}

// While the disk runs: a chain takes its time, and the parent's is as long as the disk's. The
// disk's own does not change meanwhile, as all changes of the graph wait for this one.
void CommitJob::open_parent(Done ready) {
  const auto disk = chain();
  if (!disk) return ready(disk.error());
  if (auto shared = (*disk)->chain().layers[1]->file().share(drivers::Sharing::kCoalescer); !shared)
    return ready(std::move(shared));
  drivers::OpenContext writing{context().reactor, context().log, {.readers = true}};
  opening_.emplace(parent_, drivers::ChainPolicy{(*disk)->options().raw_parent}, writing);
  open_step(std::move(ready));
}

// One image a turn of the loop, so that guests' requests get their turns in between.
void CommitJob::open_step(Done ready) {
  const auto more = opening_->step();
  if (!more) return opened(more.error(), ready);
  if (*more) return context().reactor.post([this, ready = std::move(ready)] { open_step(ready); });
  // From here on the parent is locked.
  if (auto anew = drivers::CoalesceJournal::begin_anew(parent_.path); !anew)
    return opened(std::move(anew), ready);
  auto node = opening_->take();
  if (!node) return opened(std::move(node).error(), ready);
  target_ = std::move(node).value();
  const Bytes size = context().graph.image().info().size;
  opened(target_->info().size < size ? target_->resize(size) : Result<void>(), ready);
}

void CommitJob::opened(Result<void> result, const Done& ready) {
  opening_.reset();
  if (!result) give_back_the_lock();
  ready(std::move(result));
}

std::unique_ptr<MirrorFilter> CommitJob::make_filter(NodePtr disk) {
  MirrorOptions options;
  options.own_only = true;
  options.disk_first = true;
  const uint64_t size = disk->info().size.v;
  auto filter =
      std::make_unique<MirrorFilter>(std::move(disk), *target_, options, on_target_failed());
  filter->mark(0, size);
  return filter;
}

void CommitJob::finish(Done done) {
  finished_ = std::move(done);
  flush_.op = drivers::Op::kFlush;
  flush_.done = [](drivers::Request& request, int error) {
    CommitJob& job = *static_cast<Flush&>(request).job;
    job.context().reactor.post([&job, error] { job.flushed(error); });
  };
  context().graph.scheduler().submit(flush_);
}

// Both files have all that was written before, and every flush goes to both.
void CommitJob::flushed(int error) {
  Result<void> ready;
  if (error != 0)
    ready = Error::from_errno(error, "flush " + leaf_.path);
  else if (filter()->failure())
    ready = *filter()->failure();
  else
    ready = take_name();
  if (!ready) return std::exchange(finished_, nullptr)(std::move(ready));
  sync_.kind = io::FileOp::Kind::kDataSync;
  sync_.fd = directory_.get();
  sync_.done = [](io::FileOp& op, int64_t result) {
    static_cast<Sync&>(op).job->name_taken(result < 0 ? static_cast<int>(-result) : 0);
  };
  context().reactor.submit(sync_);
}

Result<void> CommitJob::take_name() {
  VBDKIT_TRY(drivers::give_owner(parent_.path, leaf_.path));
  VBDKIT_ASSIGN(directory_, Fd::open(drivers::directory_of(leaf_.path), O_RDONLY | O_DIRECTORY));
  const std::string second = second_name();
  int linked = ::link(leaf_.path.c_str(), second.c_str());
  // Left by one that was killed.
  if (linked != 0 && errno == EEXIST && ::unlink(second.c_str()) == 0)
    linked = ::link(leaf_.path.c_str(), second.c_str());
  if (linked != 0) return Error::from_errno(errno, "link " + leaf_.path + " to " + second);
  if (::rename(parent_.path.c_str(), leaf_.path.c_str()) != 0) {
    Error failed = Error::from_errno(errno, "rename " + parent_.path + " to " + leaf_.path);
    ::unlink(second_name().c_str());
    return failed;
  }
  return {};
}

void CommitJob::name_taken(int error) {
  const auto ended = [this](Result<void> result) {
    if (result) {
      // The chain that read it is closed.
      if (const auto alone = context().graph.image().readers_gone(); !alone)
        context().log.warning("%s", alone.error().message().c_str());
      return remove_second_name();
    }
    give_name_back();
    std::exchange(finished_, nullptr)(std::move(result));
  };
  if (error != 0)
    return ended(Error::from_errno(error, "sync " + drivers::directory_of(leaf_.path)));
  replace(
      target_,
      [this](NodePtr&) -> Result<void> {
        target_->renamed(leaf_.path);
        return {};
      },
      ended);
}

// Beside the loop: to give back the blocks of a large file takes the kernel seconds.
void CommitJob::remove_second_name() {
  beside_.run(
      [name = second_name()]() -> Result<void> {
        if (::unlink(name.c_str()) == 0) return {};
        return Error::from_errno(errno, "remove " + name);
      },
      [this](Result<void> removed) {
        if (!removed) context().log.warning("%s", removed.error().message().c_str());
        std::exchange(finished_, nullptr)({});
      });
}

void CommitJob::give_name_back() {
  if (::link(leaf_.path.c_str(), parent_.path.c_str()) == 0 &&
      ::rename(second_name().c_str(), leaf_.path.c_str()) == 0)
    return;
  context().log.error(
      "%s", Error::from_errno(errno, "the image in use has no name but " + second_name() +
                                         ", and " + leaf_.path + " has the same content until now")
                .message()
                .c_str());
}

}  // namespace vbdkit::jobs
