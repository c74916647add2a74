// SPDX-License-Identifier: LGPL-2.1-or-later
//
// CompareJob: finds the first byte in which two nodes differ, several requests at a time, without
// reading what both know to be zero. The shorter one counts as if zeroes followed.
// Thread: the reactor of both nodes, which outlive the job. The job lives until `done` ran and may
// be destroyed in it; it owns its buffers.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "drivers/jobs/extent_cursor.h"
#include "drivers/jobs/job.h"
#include "drivers/node.h"

namespace vbdkit::drivers {

struct CompareOptions {
  unsigned requests = 8;            // at a time, to each of the two
  uint64_t request_size = 1 << 20;  // bytes; a power of two
};

class CompareJob final : public Job {
 public:
  // The offset of the first difference in bytes, or nothing.
  using Answer = Result<std::optional<uint64_t>>;

  CompareJob(Node& a, Node& b, const CompareOptions& options);
  ~CompareJob() override;

  // May call `done` before it returns.
  void start(std::function<void(Answer)> done);

  uint64_t settled() const override { return settled_; }
  uint64_t total() const override { return end_; }
  void cancel() override;

 private:
  struct Slot;
  struct Side {
    Node& node;
    ExtentCursor cursor;
  };

  void pump();
  bool know_more();
  uint64_t next_piece(bool (&zero)[2]) const;
  void begin(Slot& slot, uint64_t offset, uint64_t length, const bool (&zero)[2]);
  void read_done(Slot& slot);
  void fail(const Node& node, uint64_t offset, int error);
  bool over() const;

  const uint64_t unit_;  // bytes
  const uint64_t request_size_;
  const uint64_t end_;
  Side sides_[2];
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<Slot*> idle_;
  std::function<void(Answer)> done_;
  std::optional<Error> error_;
  std::optional<uint64_t> difference_;
  uint64_t settled_ = 0;
  bool pumping_ = false;
  bool again_ = false;
};

}  // namespace vbdkit::drivers
