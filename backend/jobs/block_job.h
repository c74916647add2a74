// SPDX-License-Identifier: LGPL-2.1-or-later
//
// BlockJob: a job on a running disk, as QEMU's block jobs are (qapi/job.json, block-core.json): its
// states, its events, its progress. What all have in common is here: a MirrorFilter is put above
// the image, a CopyPump works through it, and in the end the graph is changed between two requests.
// A kind of job says which filter it wants and what its end is.
//
//   created ─▶ running ─▶ (ready ─▶) waiting ─▶ pending ─▶ concluded ─▶ null
//                └──────────┴─▶ aborting ──────────────────────┘
//
// A job that fails or is cancelled leaves the disk as it was; it never fails a guest's request.
//
// Thread: the reactor's. Ownership: the JobTable's, from the start until it has ended. The graph
// and what is in the context outlive it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "backend/control/json.h"
#include "backend/jobs/copy_pump.h"
#include "backend/live_graph.h"
#include "base/log.h"
#include "base/result.h"
#include "drivers/jobs/mirror_filter.h"

namespace vbdkit::jobs {

enum class JobStatus {
  kCreated,
  kRunning,
  kPaused,
  kReady,
  kStandby,  // ready, and paused
  kWaiting,
  kPending,
  kAborting,
  kConcluded,
  kNull,
};
const char* to_string(JobStatus status);

struct JobContext {
  io::Reactor& reactor;
  const Logger& log;
  LiveGraph& graph;
  std::function<void(std::string_view name, std::string_view data)> event;
  // Asked before something is written that does not pass the reactor; none: always.
  std::function<Result<void>()> may_write = {};
  // Of a file that was made for a job: it is ours when `done` says so. None: it is at once.
  std::function<void(const std::string& path, std::function<void(Result<void>)> done)> admit = {};
};

struct JobSettings {
  std::string id;
  uint64_t speed = 0;          // bytes a second; 0: no limit
  bool auto_dismiss = true;    // it is forgotten when it has ended
  bool auto_complete = false;  // it does not wait for complete() when it is ready
};

class BlockJob {
 public:
  virtual ~BlockJob();
  BlockJob(const BlockJob&) = delete;
  BlockJob& operator=(const BlockJob&) = delete;

  virtual const char* type() const = 0;  // "mirror"
  // Whether it would be disturbed by another who puts an image in front, or takes one out.
  virtual bool changes_image() const { return true; }

  // `ended` is called from the loop when the job is concluded.
  void start(std::function<void()> ended);
  // Not forced, a job that is ready ends well, without a switch to its target.
  Result<void> cancel(bool force);
  Result<void> complete();
  Result<void> pause();
  Result<void> resume();
  Result<void> set_speed(uint64_t speed);
  // Of a concluded job.
  void dismiss() { set_status(JobStatus::kNull); }

  const JobSettings& settings() const { return settings_; }
  JobStatus status() const { return status_; }
  bool ready() const { return phase_ == Phase::kReady; }
  bool concluded() const { return phase_ == Phase::kConcluded; }
  const std::optional<Error>& error() const { return error_; }
  bool cancelled() const { return cancelled_; }
  // Bytes that are settled, and with those that are to come.
  uint64_t offset() const;
  uint64_t length() const;
  void write_info(control::JsonWriter& w) const;        // QEMU's JobInfo
  void write_block_info(control::JsonWriter& w) const;  // QEMU's BlockJobInfo

 protected:
  using Done = LiveGraph::Done;

  BlockJob(const JobContext& context, JobSettings settings);

  // The filter, its bitmap filled, for above the image `disk`. With nothing in flight.
  virtual std::unique_ptr<drivers::MirrorFilter> make_filter(drivers::NodePtr disk) = 0;
  // Puts it there.
  virtual void attach(Done done);
  // Whether it was made for the images that the disk's chain had then. The job begins when changes
  // of the graph that were asked for before it are made: a snapshot may be among them.
  virtual bool tied_to_chain() const { return false; }
  // Whether the target follows until complete(), or the job is at its end when all is copied.
  virtual bool follows() const { return true; }
  // All is copied, and nothing is in flight. The job takes its filter out of the graph, as a rule
  // by replace(). Where it fails, the filter must be there still.
  virtual void finish(Done done) = 0;

  // With nothing in flight; where it fails, nothing is changed.
  using Last = std::function<Result<void>(drivers::NodePtr& top)>;
  // Does `last`, and puts the job's own `target` in the place of the filter and all beneath it,
  // after a flush of both. What was there is destroyed when the disk runs again.
  void replace(drivers::NodePtr& target, Last last, Done done);
  // Makes this change, if any, and takes the filter out in the same; `done` in the change's place.
  void take_out(LiveGraph::Change change, Done done);
  // What attach() does, for one that does more in the same change. Fails, with nothing changed,
  // where the disk is not any more what the job was made for.
  Result<void> put_above_image(drivers::NodePtr& top);

  const JobContext& context() const { return context_; }
  drivers::MirrorFilter* filter() const { return filter_; }
  // For the filter to call.
  std::function<void()> on_target_failed();

 private:
  enum class Phase { kStarting, kCopying, kReady, kEnding, kConcluded };

  std::vector<std::string> images() const;
  Result<void> check_disk() const;
  void set_status(JobStatus status);
  void attached(Result<void> result);
  void clean();
  void fail(Error error, const char* operation);
  void abort();
  void finish_now();
  void finished(Result<void> result);
  void conclude();
  void set_running_status();
  std::string event_data() const;

  const JobContext context_;
  JobSettings settings_;
  // Of the disk, when the job was made.
  const std::vector<std::string> images_;
  const Bytes size_;
  JobStatus status_ = JobStatus::kCreated;
  Phase phase_ = Phase::kStarting;
  bool paused_ = false;
  bool complete_wanted_ = false;
  bool cancelled_ = false;
  bool in_place_ = false;  // it ends without a switch to its target
  std::optional<Error> error_;
  drivers::MirrorFilter* filter_ = nullptr;  // in the graph, which owns it
  std::unique_ptr<CopyPump> pump_;
  uint64_t copied_ = 0;  // bytes, when the pump is gone
  std::function<void()> ended_;
  // Callbacks that outlive this find it gone.
  const std::shared_ptr<BlockJob*> self_;
};

// `node` is in the graph beneath `top`. Puts `with` in its place, or what stood beneath it; returns
// what was there.
drivers::NodePtr exchange_node(drivers::NodePtr& top, const drivers::Node& node,
                               drivers::NodePtr with);
drivers::NodePtr remove_node(drivers::NodePtr& top, drivers::Node& node);

}  // namespace vbdkit::jobs
