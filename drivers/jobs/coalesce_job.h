// SPDX-License-Identifier: LGPL-2.1-or-later
//
// CoalesceJob: merges an image into its parent. What the image holds is copied into the parent, the
// images that stand on it are put on the parent, and its file goes.
//
// Where guests use what stands on the image, they read the same throughout: the job writes to the
// parent only what the image covers, and takes nothing back that they may have seen of the parent's
// metadata (OpenOptions::readers). Those that have the parent open are asked to let the job write
// (CoalesceUsers::yield_locks); whoever has it open and was not asked is met by his lock. The same
// lock keeps others away meanwhile, but for those who come with the image between themselves and
// the parent, and may start at any time.
//
// Each step may be interrupted at any point and is done again by the next job on the same image:
//  1. Copy. The image covers in itself all that is copied, so it reads the same throughout; nobody
//     else may stand on the parent. The parent keeps its own rule, data before what points at them.
//  2. Put each child on the parent. Both read the same now. What will be written is in the journal
//     first. An image that a guest writes is put there by who has it open.
//  3. Have all users look at their chains again, so that none has the image open, and remove the
//  image, then the journal. Where nobody stands on the image, the parent takes its name.
//
// The image is locked from plan() to the end, the parent until it is written, a child while it is.
// Blocks, but for the copying, which runs on the context's reactor; that thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "drivers/image_format.h"
#include "drivers/jobs/coalesce_journal.h"
#include "drivers/jobs/coalesce_users.h"
#include "drivers/jobs/copy_job.h"
#include "drivers/jobs/job.h"
#include "drivers/registry.h"

namespace vbdkit::drivers {

struct CoalesceOptions {
  std::vector<std::string> directories = {};  // to look for children in, beside the images' own
  bool keep = false;                          // both files keep their names; they read the same
  uint64_t stretch = uint64_t{1} << 30;  // bytes that are copied between two entries in the journal
  // Asked before each step that writes to images beside the reactor; none: it always may.
  std::function<Result<void>()> may_write = {};
  CoalesceUsers* users = nullptr;  // outlives the job; none: nobody else may have the images open
};

class CoalesceJob final : public Job {
 public:
  // Looks whether it can be done, and changes nothing. `image`: without filters.
  static Result<std::unique_ptr<CoalesceJob>> plan(const NodeSpec& image,
                                                   const CoalesceOptions& options,
                                                   const OpenContext& context);
  ~CoalesceJob() override;

  void start(std::function<void(Result<void>)> done);

  // At the end: the file that has the content now; empty where all but the journal was done before.
  const std::string& result() const { return result_; }
  size_t children() const { return journal_.children.size(); }

  uint64_t settled() const override;
  uint64_t total() const override { return size_; }
  void cancel() override;

 private:
  CoalesceJob(NodeSpec image, CoalesceOptions options, const OpenContext& context);

  Result<void> may_write() const {
    return options_.may_write ? options_.may_write() : Result<void>();
  }
  Result<void> look();
  Result<void> look_for_children();
  bool put_there_before() const;
  Result<void> find_children();
  Result<void> lock_the_image();
  // With users: coalesce_live.cc.
  Result<void> claim(CoalesceUsers::Phase phase) const;
  bool is_child(const FileIdentity& file) const;
  Result<void> add_children_of_users();
  Result<void> look_for_users() const;
  Result<void> lock_for_copy();
  Result<ImageLock> borrow(const std::string& path) const;
  Result<void> relink_live(const CoalesceJournal::Child& child);
  Result<void> refresh_users();
  Result<void> open_nodes();
  void copy_next();
  void copied(Result<void> result);
  void clear_tail();
  Result<void> close_nodes();
  Result<void> after_copy();
  Result<void> relink();
  Result<bool> plan_child(CoalesceJournal::Child& child) const;
  bool takes_name() const;
  Result<void> remove();
  void finish(Result<void> result);

  const NodeSpec image_;
  const CoalesceOptions options_;
  const OpenContext context_;
  const std::string journal_path_;
  CoalesceJournal journal_;
  NodeSpec parent_;
  std::optional<ImageLock> image_lock_;
  std::optional<ImageLock> parent_lock_;
  std::vector<ImageLock> child_locks_;  // where nobody else may use them
  bool live_ = false;
  uint64_t size_ = 0;  // bytes, of the image's disk
  std::string result_;
  bool only_journal_ = false;

  NodePtr source_;  // the image alone
  NodePtr destination_;
  std::unique_ptr<CopyJob> copy_;
  struct Tail : Request {
    CoalesceJob* job = nullptr;
  };
  Tail tail_;
  std::function<void(Result<void>)> done_;
  bool cancelled_ = false;
};

}  // namespace vbdkit::drivers
