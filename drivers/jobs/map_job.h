// SPDX-License-Identifier: LGPL-2.1-or-later
//
// MapJob: tells, in order, where the bytes of a disk are: in which layer of a chain, at which place
// of its file. Holes in raw layers are told as such.
// Thread: the reactor of the layers, which outlive the job. The job lives until `done` ran.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "drivers/chain/chain_node.h"
#include "drivers/chain/window_builder.h"
#include "drivers/jobs/job.h"

namespace vbdkit::drivers {

// A run of the disk.
struct MapRun {
  uint64_t offset = 0;
  uint64_t length = 0;                          // bytes
  Segment::Kind kind = Segment::Kind::kAbsent;  // kAbsent: no layer has it
  size_t layer = 0;                             // 0 is the leaf; not of kAbsent
  uint64_t file_offset = 0;                     // of kData
};

class MapJob final : public Job {
 public:
  MapJob(const Chain& chain, std::function<void(const MapRun&)> found);
  ~MapJob() override;

  void start(std::function<void(int error)> done);

  uint64_t settled() const override { return position_; }
  uint64_t total() const override { return end_; }
  void cancel() override { cancelled_ = true; }

 private:
  void pump();
  void build();
  void look_for_holes();
  void take_status(int error);
  void add(const MapRun& run);

  const Chain& chain_;
  const std::function<void(const MapRun&)> found_;
  std::function<void(int error)> done_;
  const uint64_t window_;
  const uint64_t end_;
  uint64_t position_ = 0;
  std::unique_ptr<WindowBuilder> builder_;
  std::optional<Window> known_;
  StatusRequest status_;
  std::optional<MapRun> holes_in_;  // the run that is looked at
  std::optional<MapRun> last_;      // not told yet: it may go on
  int error_ = 0;
  bool waiting_ = false;
  bool pumping_ = false;
  bool cancelled_ = false;
};

}  // namespace vbdkit::drivers
