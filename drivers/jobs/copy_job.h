// SPDX-License-Identifier: LGPL-2.1-or-later
//
// CopyJob: copies one node's bytes to another, several requests at a time, without reading or
// writing what is known to be zero, and flushes the destination: for convert, and for coalescing
// one image into another.
// Thread: the reactor of both nodes, which outlive the job. The job lives until `done` ran and may
// be destroyed in it; it owns its buffers.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "drivers/jobs/extent_cursor.h"
#include "drivers/jobs/job.h"
#include "drivers/jobs/job_buffer.h"
#include "drivers/node.h"

namespace vbdkit::drivers {

struct CopyOptions {
  // What to do where the source holds nothing (Extent::allocated is false).
  enum class Absent {
    kZero,  // it reads as zeroes, and so shall the destination
    kKeep,  // the destination keeps what it has: a layer is merged into what lies beneath it
  };
  uint64_t offset = 0;              // bytes; where to begin
  uint64_t length = UINT64_MAX;     // bytes; at most to the end of the source
  unsigned requests = 16;           // at a time
  uint64_t request_size = 1 << 20;  // bytes; a power of two
  // Zeroes found in data that was read are not written as data where so many come together; 0: all
  // are written. Not with kKeep.
  uint64_t sparse = 64 * 1024;    // bytes
  bool destination_zero = false;  // it reads as zeroes where nothing was written yet
  bool flush = true;              // at the end
  Absent absent = Absent::kZero;
};

class CopyJob final : public Job {
 public:
  CopyJob(Node& source, Node& destination, const CopyOptions& options);
  ~CopyJob() override;

  // May call `done` before it returns.
  void start(std::function<void(Result<void>)> done);

  uint64_t settled() const override { return settled_; }
  uint64_t total() const override { return end_ - start_; }
  void cancel() override;

 private:
  struct Slot;
  enum class Kind { kData, kZero, kKeep };
  struct Piece {
    uint64_t length = 0;
    Kind kind = Kind::kData;
  };

  void pump();
  Piece next_piece() const;
  Piece data_piece() const;
  Kind kind_of(const Extent& extent) const;
  void begin(Slot& slot, uint64_t offset, const Piece& piece);
  void read_done(Slot& slot, int error);
  void write_next(Slot& slot);
  void finish(Slot& slot);
  void fail(const char* what, uint64_t offset, int error);
  void end();
  void answer();

  Node& source_;
  Node& destination_;
  const CopyOptions options_;
  const uint64_t unit_;    // bytes; what both nodes' requests are multiples of
  const uint64_t sparse_;  // bytes; 0: zeroes in data are not looked for
  const uint64_t request_size_;
  const uint64_t start_;
  const uint64_t end_;
  ExtentCursor cursor_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<Slot*> idle_;
  std::function<void(Result<void>)> done_;
  struct Flush : Request {
    CopyJob* job = nullptr;
  };
  Flush flush_;
  std::optional<Error> error_;
  uint64_t settled_ = 0;
  bool pumping_ = false;
  bool again_ = false;
};

}  // namespace vbdkit::drivers
