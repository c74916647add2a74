// SPDX-License-Identifier: LGPL-2.1-or-later
//
// CommitJob: merges the leaf of a running disk into its parent, which then takes the leaf's name,
// so that a guest's configuration stays true.
//
// The parent is opened a second time, for writing, while the chain goes on reading it through the
// layer that it has. That is sound because the parent is written only where the leaf covers it:
//  - A copy takes from the leaf what the leaf itself holds (Extent::own), and the scheduler keeps
//    everything that overlaps away from it meanwhile.
//  - A guest's change goes to the leaf first, and to the parent when the leaf has it.
// So no read through the chain reaches a byte of the parent that is ever written, and what the
// chain's map and the parent's layer know of all others stays true: a format that gives space back
// does not use it again while it has readers (OpenOptions::readers), so that what lay there can be
// read there still. The last flush before the names change covers both files; from then on every
// flush does, so either file, found under the leaf's name, has all that was flushed.
//
// Names: the leaf gets a second one (LEAF.vbdkit-merged), rename(2) gives the parent the leaf's,
// and when the disk runs on the parent the second name goes. Killed before the rename, the next
// start finds the leaf with a parent that it covers; after it, the parent. Nothing has to be
// mended; what may be left is the second name, which nobody needs: the next merge or `vbdkit gc`
// removes it.
#pragma once

#include <optional>
#include <string>

#include "backend/beside.h"
#include "backend/jobs/block_job.h"
#include "drivers/chain/open_chain.h"
#include "drivers/image_forest.h"
#include "drivers/registry.h"

namespace vbdkit::jobs {

class CommitJob final : public BlockJob {
 public:
  // `base`: the parent's path, as a check; may be empty where the chain has no more images.
  static Result<std::unique_ptr<BlockJob>> create(const JobContext& context, JobSettings settings,
                                                  const std::string& base);
  ~CommitJob() override;

  const char* type() const override { return "commit"; }

 private:
  struct Flush : drivers::Request {
    CommitJob* job = nullptr;
  };
  struct Sync : io::FileOp {
    CommitJob* job = nullptr;
  };

  CommitJob(const JobContext& context, JobSettings settings, drivers::NodeSpec leaf,
            drivers::NodeSpec parent);
  void attach(Done done) override;
  Result<void> look_for_siblings() const;
  void open_parent(Done ready);
  void open_step(Done ready);
  void opened(Result<void> result, const Done& ready);
  void give_back_the_lock();
  std::unique_ptr<drivers::MirrorFilter> make_filter(drivers::NodePtr disk) override;
  void finish(Done done) override;
  void flushed(int error);
  Result<void> take_name();
  void name_taken(int error);
  void remove_second_name();
  void give_name_back();
  std::string second_name() const { return leaf_.path + std::string(drivers::kMerged); }
  Result<drivers::ChainNode*> chain() const;

  const drivers::NodeSpec leaf_;
  const drivers::NodeSpec parent_;
  std::optional<drivers::ChainOpening> opening_;
  drivers::NodePtr target_;
  Done finished_;
  Flush flush_;
  Fd directory_;
  Sync sync_;
  Beside beside_;
};

}  // namespace vbdkit::jobs
