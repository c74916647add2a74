// SPDX-License-Identifier: LGPL-2.1-or-later
//
// StreamJob: pulls what a running disk's image holds only in its parents, all of them or those
// above a base, into the image, which then stands alone or on the base.
//
// What is pulled in the image has, and metadata that no more need the parents are written last,
// with nothing in flight. So a job that was cancelled or killed at any point has lost nothing, and
// the next one copies only what is missing still. Parents are only read.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "backend/jobs/block_job.h"

namespace vbdkit::jobs {

class StreamJob final : public BlockJob {
 public:
  // `base`: a path of the chain; "": nothing stays beneath the image.
  static Result<std::unique_ptr<BlockJob>> create(const JobContext& context, JobSettings settings,
                                                  const std::string& base);

  const char* type() const override { return "stream"; }

 private:
  // The image that stays beneath.
  struct Base {
    size_t at = 0;  // in the chain
    std::string path;
    std::string format;
  };

  StreamJob(const JobContext& context, JobSettings settings, std::optional<Base> base)
      : BlockJob(context, std::move(settings)), base_(std::move(base)) {}
  std::unique_ptr<drivers::MirrorFilter> make_filter(drivers::NodePtr disk) override;
  bool tied_to_chain() const override { return true; }
  bool follows() const override { return false; }
  void finish(Done done) override;
  Result<std::unique_ptr<drivers::ChainRefresh>> new_chain() const;

  const std::optional<Base> base_;
};

}  // namespace vbdkit::jobs
