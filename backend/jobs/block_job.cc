// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/jobs/block_job.h"

#include <utility>

namespace vbdkit::jobs {

using control::JsonWriter;
using drivers::MirrorFilter;
using drivers::NodePtr;

const char* to_string(JobStatus status) {
  switch (status) {
    case JobStatus::kCreated:
      return "created";
    case JobStatus::kRunning:
      return "running";
    case JobStatus::kPaused:
      return "paused";
    case JobStatus::kReady:
      return "ready";
    case JobStatus::kStandby:
      return "standby";
    case JobStatus::kWaiting:
      return "waiting";
    case JobStatus::kPending:
      return "pending";
    case JobStatus::kAborting:
      return "aborting";
    case JobStatus::kConcluded:
      return "concluded";
    case JobStatus::kNull:
      break;
  }
  return "null";
}

NodePtr exchange_node(NodePtr& top, const drivers::Node& node, NodePtr with) {
  if (top.get() == &node) return std::exchange(top, std::move(with));
  drivers::Node* over = top.get();
  while (over->next_node() != &node) over = over->next_node();
  return over->exchange_next(std::move(with));
}

NodePtr remove_node(NodePtr& top, drivers::Node& node) {
  NodePtr beneath = node.exchange_next(nullptr);
  return exchange_node(top, node, std::move(beneath));
}

BlockJob::BlockJob(const JobContext& context, JobSettings settings)
    : context_(context),
      settings_(std::move(settings)),
      images_(images()),
      size_(context_.graph.image().info().size),
      self_(std::make_shared<BlockJob*>(this)) {}

BlockJob::~BlockJob() { *self_ = nullptr; }

void BlockJob::set_status(JobStatus status) {
  if (status_ == status) return;
  status_ = status;
  JsonWriter w;
  w.begin_object().field("status", to_string(status)).field("id", settings_.id).end_object();
  context_.event("JOB_STATUS_CHANGE", w.take());
}

void BlockJob::set_running_status() {
  if (phase_ == Phase::kReady)
    set_status(paused_ ? JobStatus::kStandby : JobStatus::kReady);
  else
    set_status(paused_ ? JobStatus::kPaused : JobStatus::kRunning);
}

void BlockJob::start(std::function<void()> ended) {
  ended_ = std::move(ended);
  set_running_status();
  attach([self = self_](Result<void> result) {
    if (*self != nullptr) (*self)->attached(std::move(result));
  });
}

void BlockJob::attach(Done done) {
  context_.graph.change([this](NodePtr& top) { return put_above_image(top); }, std::move(done));
}

std::vector<std::string> BlockJob::images() const {
  const drivers::ChainNode* const chain = context_.graph.chain();
  return chain == nullptr ? std::vector<std::string>() : chain->chain().paths;
}

Result<void> BlockJob::check_disk() const {
  if (context_.graph.image().info().size != size_)
    return Error(ErrorKind::kBusy, "the disk has just been resized", EBUSY);
  if (tied_to_chain() && images() != images_)
    return Error(ErrorKind::kBusy, "the disk's chain has just been changed", EBUSY);
  return {};
}

Result<void> BlockJob::put_above_image(NodePtr& top) {
  VBDKIT_TRY(check_disk());
  drivers::Node& image = context_.graph.image();
  drivers::Node* over = top.get();
  while (over != &image && over->next_node() != &image) over = over->next_node();
  NodePtr disk = over == &image ? std::move(top) : over->exchange_next(nullptr);
  auto filter = make_filter(std::move(disk));
  filter_ = filter.get();
  filter_->set_owner("Job '" + settings_.id + "' (" + type() + ")");
  if (over == &image)
    top = std::move(filter);
  else
    over->exchange_next(std::move(filter));
  return {};
}

void BlockJob::attached(Result<void> result) {
  if (!result) {
    error_ = std::move(result).error();
    conclude();
    return;
  }
  pump_ = std::make_unique<CopyPump>(
      context_.reactor, context_.graph.scheduler(), *filter_,
      CopyPump::Events{
          .clean = [this] { clean(); },
          .failed =
              [this](int error, uint64_t offset) {
                fail(Error::from_errno(
                         error, "read " + filter_->spec() + " at byte " + std::to_string(offset)),
                     "read");
              },
      });
  phase_ = Phase::kCopying;
  if (cancelled_) return abort();
  if (filter_->failure()) return fail(*filter_->failure(), "write");
  pump_->set_speed(settings_.speed);
  pump_->pause(paused_);
  pump_->go();
}

std::function<void()> BlockJob::on_target_failed() {
  return [self = self_] {
    if (*self == nullptr) return;
    // Inside of a request's completion.
    (*self)->context_.reactor.post([self] {
      if (*self == nullptr) return;
      BlockJob& job = **self;
      if (job.filter_ != nullptr && job.filter_->failure())
        job.fail(*job.filter_->failure(), "write");
    });
  };
}

// All that was marked is copied.
void BlockJob::clean() {
  if (!follows()) return finish_now();
  if (phase_ == Phase::kCopying) {
    phase_ = Phase::kReady;
    filter_->flush_both(true);
    set_running_status();
    context_.event("BLOCK_JOB_READY", event_data());
  }
  if (complete_wanted_ || settings_.auto_complete) finish_now();
}

void BlockJob::fail(Error error, const char* operation) {
  if (phase_ == Phase::kStarting || phase_ == Phase::kEnding || phase_ == Phase::kConcluded) return;
  context_.log.error("job %s: %s", settings_.id.c_str(), error.message().c_str());
  JsonWriter w;
  w.begin_object().field("device", settings_.id).field("operation", operation);
  w.field("action", "report").end_object();
  context_.event("BLOCK_JOB_ERROR", w.take());
  error_ = std::move(error);
  abort();
}

void BlockJob::abort() {
  phase_ = Phase::kEnding;
  set_status(JobStatus::kAborting);
  pump_->stop(
      [this] { take_out({}, [this](Result<void> result) { finished(std::move(result)); }); });
}

void BlockJob::finish_now() {
  phase_ = Phase::kEnding;
  paused_ = false;
  pump_->stop([this] {
    const auto done = [this](Result<void> result) {
      if (result) return finished({});
      if (filter_ == nullptr) return finished(std::move(result));
      // The disk goes on as it was.
      error_ = std::move(result).error();
      context_.log.error("job %s: %s", settings_.id.c_str(), error_->message().c_str());
      abort();
    };
    if (in_place_)
      take_out({}, done);
    else
      finish(done);
  });
}

void BlockJob::take_out(LiveGraph::Change change, Done done) {
  change.apply = [this, last = std::move(change.apply)](NodePtr& top) -> Result<void> {
    if (last) VBDKIT_TRY(last(top));
    const bool refresh = filter_->refresh_wanted();
    const NodePtr filter = remove_node(top, *filter_);
    filter_ = nullptr;
    if (!refresh) return {};
    if (const auto looked = top->refresh_size(); !looked)
      context_.log.warning("%s", looked.error().message().c_str());
    return {};
  };
  change.done = [self = self_, done = std::move(done)](Result<void> result) {
    if (*self != nullptr) done(std::move(result));
  };
  context_.graph.change(std::move(change));
}

void BlockJob::replace(NodePtr& target, Last last, Done done) {
  context_.graph.change({
      .flush = true,
      .apply = [this, &target, last = std::move(last)](NodePtr& top) -> Result<void> {
        if (filter_->failure()) return *filter_->failure();
        if (!filter_->todo().none())
          return Error(ErrorKind::kIo, "the disk failed a write at the moment of the switch");
        if (last) VBDKIT_TRY(last(top));
        target = exchange_node(top, *filter_, std::move(target));
        filter_ = nullptr;
        return {};
      },
      .done =
          [self = self_, &target, done = std::move(done)](Result<void> result) {
            if (*self == nullptr) return;
            // What was there ends here, with the disk running: it may have metadata to write.
            if (result) target.reset();
            done(std::move(result));
          },
  });
}

void BlockJob::finished(Result<void> result) {
  if (!result && !error_) error_ = std::move(result).error();
  conclude();
}

void BlockJob::conclude() {
  if (pump_) copied_ = pump_->copied();
  pump_.reset();
  phase_ = Phase::kConcluded;
  const bool well = !error_ && !cancelled_;
  if (well) {
    set_status(JobStatus::kWaiting);
    set_status(JobStatus::kPending);
  } else {
    set_status(JobStatus::kAborting);
  }
  context_.event(cancelled_ && !error_ ? "BLOCK_JOB_CANCELLED" : "BLOCK_JOB_COMPLETED",
                 event_data());
  set_status(JobStatus::kConcluded);
  context_.reactor.post([self = self_] {
    if (*self == nullptr) return;
    // It destroys this.
    const auto ended = std::move((*self)->ended_);
    ended();
  });
}

Result<void> BlockJob::cancel(bool force) {
  if (phase_ == Phase::kEnding || phase_ == Phase::kConcluded)
    return Error(ErrorKind::kBusy, "Job '" + settings_.id + "' is ending already");
  if (phase_ == Phase::kReady && !force) {
    in_place_ = true;
    complete_wanted_ = true;
    pump_->pause(false);
    pump_->go();
    return {};
  }
  cancelled_ = true;
  if (phase_ != Phase::kStarting) abort();
  return {};
}

Result<void> BlockJob::complete() {
  if (phase_ != Phase::kReady)
    return Error(ErrorKind::kInvalid, "Job '" + settings_.id + "' in state '" + to_string(status_) +
                                          "' cannot be completed");
  complete_wanted_ = true;
  paused_ = false;
  pump_->pause(false);
  pump_->go();
  return {};
}

Result<void> BlockJob::pause() {
  if (phase_ == Phase::kEnding || phase_ == Phase::kConcluded || paused_)
    return Error(ErrorKind::kInvalid, "Job '" + settings_.id + "' in state '" + to_string(status_) +
                                          "' cannot be paused");
  paused_ = true;
  if (pump_) pump_->pause(true);
  set_running_status();
  return {};
}

Result<void> BlockJob::resume() {
  if (!paused_) return Error(ErrorKind::kInvalid, "Job '" + settings_.id + "' is not paused");
  paused_ = false;
  set_running_status();
  if (pump_) pump_->pause(false);
  return {};
}

Result<void> BlockJob::set_speed(uint64_t speed) {
  if (phase_ == Phase::kConcluded)
    return Error(ErrorKind::kInvalid, "Job '" + settings_.id + "' has ended");
  settings_.speed = speed;
  if (pump_) pump_->set_speed(speed);
  return {};
}

uint64_t BlockJob::offset() const { return pump_ ? pump_->copied() : copied_; }

uint64_t BlockJob::length() const {
  return offset() + (filter_ != nullptr ? filter_->todo().marked() : 0);
}

std::string BlockJob::event_data() const {
  JsonWriter w;
  w.begin_object().field("type", type()).field("device", settings_.id);
  w.field("len", length()).field("offset", offset()).field("speed", settings_.speed);
  if (error_) w.field("error", error_->message());
  w.end_object();
  return w.take();
}

void BlockJob::write_info(JsonWriter& w) const {
  w.begin_object().field("id", settings_.id).field("type", type());
  w.field("status", to_string(status_));
  w.field("current-progress", offset()).field("total-progress", length());
  if (error_) w.field("error", error_->message());
  w.end_object();
}

void BlockJob::write_block_info(JsonWriter& w) const {
  w.begin_object().field("type", type()).field("device", settings_.id);
  w.field("len", length()).field("offset", offset());
  w.field("busy", pump_ != nullptr && pump_->busy()).field("paused", paused_);
  w.field("speed", settings_.speed);
  w.field("io-status", error_ ? "failed" : "ok").field("ready", ready());
  w.field("status", to_string(status_)).field("auto-finalize", true);
  w.field("auto-dismiss", settings_.auto_dismiss);
  if (error_) w.field("error", error_->message());
  w.end_object();
}

}  // namespace vbdkit::jobs
