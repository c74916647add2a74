// SPDX-License-Identifier: LGPL-2.1-or-later
//
// MirrorFilter: stands on top of a running disk's graph while a job brings the disk's content over
// to a target, and is what makes the job converge under any load. A bitmap says which chunks are
// still to be brought over. The job sends Op::kCopy for them through the scheduler, which keeps
// everything that overlaps a copy away from it; there is no other lock.
//
// What becomes of a guest's change while the job runs:
//   kFollow       in chunks that were brought over it goes to the target too, and the guest is
//                 answered when both are done; in all others to the disk alone, as the copy is
//                 still to come. The target reads as the disk does once nothing is marked.
//   kBeforeWrite  a chunk is copied before the first change of it: the target reads as the disk did
//                 when the filter was put there.
//   kPullIn       the target is the disk itself: what it holds only in its parents, all or some of
//                 them, is written into it, and the guest's changes need nothing beside.
// A target that fails ends the mirroring and never a guest's request: the job finds failure(), and
// from then on everything passes to the disk alone. Where the disk fails, the chunks are marked
// again.
//
// A guest may change memory that it has given for a write. So that both get the same, such a write
// is copied first.
//
// Thread: the reactor's. The target belongs to the job; it outlives the filter, as does nothing
// that is in flight.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/buffer_pool.h"
#include "drivers/jobs/chunk_bitmap.h"
#include "drivers/jobs/job_buffer.h"
#include "drivers/node.h"
#include "drivers/request_pool.h"
#include "drivers/request_queue.h"

namespace vbdkit::drivers {

struct MirrorOptions {
  enum class Mode { kFollow, kBeforeWrite, kPullIn };
  Mode mode = Mode::kFollow;
  // Only what the image itself holds is brought over (Extent::own): the target is its parent and
  // has the rest.
  bool own_only = false;
  // A change goes to the target when the disk has it, not at the same time: where reads of the
  // disk reach the target.
  bool disk_first = false;
  // kPullIn: what these images of the chain hold, from the leaf on; those behind them stay.
  size_t pulled_images = kAllImages;
  // kPullIn: LayerInfo::gaps of the image; they are zeroed where the disk is zero.
  bool gaps = false;
  bool target_zero = false;        // it reads as zeroes where nothing was written yet
  uint64_t chunk = 64 * 1024;      // bytes, a power of two
  uint64_t transfer = 256 * 1024;  // bytes read and written at once, a multiple of the chunk

  static constexpr size_t kAllImages = SIZE_MAX;
};

class MirrorFilter final : public Filter {
 public:
  // `failed` is called once, when the target has failed; inside a completion.
  MirrorFilter(NodePtr next, Node& target, const MirrorOptions& options,
               std::function<void()> failed);
  ~MirrorFilter() override;

  // Why the target cannot take what is written to the disk, if it cannot.
  static Result<void> check(const Node& disk, const Node& target);

  // What is to be brought over. Between two requests.
  void mark(uint64_t offset, uint64_t length) { todo_.mark(offset, length); }
  const ChunkBitmap& todo() const { return todo_; }
  // kBeforeWrite: what was changed on the disk since.
  const ChunkBitmap& changed() const { return changed_; }
  // For whom it works, as others are told who have to wait for it: "Job 'disk' (mirror)".
  void set_owner(std::string owner) { owner_ = std::move(owner); }
  // Flushes go to the target too (kFollow).
  void flush_both(bool both) { flush_both_ = both; }
  // So much from that byte on need not be moved, as it seemed a moment ago: one copy may take all
  // of it.
  uint64_t quiet_from(uint64_t offset) const {
    return offset >= quiet_begin_ && offset < quiet_end_ ? quiet_end_ - offset : 0;
  }
  const std::optional<Error>& failure() const { return failure_; }

  std::string_view driver() const override { return "mirror"; }
  std::string spec() const override { return next().spec(); }
  const NodeInfo& info() const override { return info_; }
  void submit(Request& request) override;
  // Not before the filter has gone: the disk keeps its size while it is being copied.
  Result<void> refresh_size() override {
    refresh_wanted_ = true;
    return {};
  }
  bool refresh_wanted() const { return refresh_wanted_; }
  Result<void> resize(Bytes) override;
  Result<void> reopen(bool read_only) override;

 private:
  struct Both;
  struct Leg;
  struct Copy;
  enum class Kind { kData, kZero, kGap, kNothing };
  using Mode = MirrorOptions::Mode;

  void fail(int error, const char* what, uint64_t offset);

  void follow(Request& request);
  void send_both(Request& request, Op op);
  void send_leg(Both& both, bool target);
  void leg_done(Leg& leg, int error);

  void copy_before(Request& request);
  bool being_copied(uint64_t offset, uint64_t length) const;
  void look_at_parked_again();

  Copy& take_copy();
  void start_copy(Copy& copy, uint64_t offset, uint64_t length, Request* origin);
  void go_on(Copy& copy);
  bool step(Copy& copy);
  void look(Copy& copy);
  void looked(Copy& copy, int error);
  Kind kind_of(const Extent& extent) const;
  Kind kind_of_zeroes() const;
  Kind kind_to_pull(const Extent& extent) const;
  void move(Copy& copy, uint64_t length);
  void put_zeroes(Copy& copy, Kind kind, uint64_t length);
  void target_done(Copy& copy, int error);
  void end_copy(Copy& copy, int error);

  Node& target_;
  const MirrorOptions options_;
  const std::function<void()> failed_;
  NodeInfo info_;
  const uint64_t unit_;  // bytes; what requests to both are multiples of
  ChunkBitmap todo_;
  ChunkBitmap changed_;
  bool target_zero_;  // nothing was written yet to what is marked
  bool flush_both_ = false;
  bool refresh_wanted_ = false;
  std::string owner_ = "a job";
  uint64_t quiet_begin_ = 0;  // bytes; behind the last copy that was looked at
  uint64_t quiet_end_ = 0;
  std::optional<Error> failure_;

  BufferPool memory_;
  std::vector<std::unique_ptr<Both>> both_;
  Both* idle_both_ = nullptr;
  std::vector<std::unique_ptr<Copy>> copies_;
  RequestQueue parked_;  // kBeforeWrite: wait for copies
};

}  // namespace vbdkit::drivers
