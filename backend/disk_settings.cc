// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/disk_settings.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace vbdkit {

using control::Json;
using control::Reply;
using drivers::ThrottleFilter;
using drivers::ThrottleLimits;

namespace {

constexpr const char* kDevice = "disk";
constexpr uint64_t kDefaultPause = 30'000;     // milliseconds
constexpr uint64_t kLongestPause = 3'600'000;  // likewise

ThrottleFilter* find_throttle(drivers::Node& top) {
  for (drivers::Node* node = &top; node != nullptr; node = node->next_node())
    if (auto* const throttle = dynamic_cast<ThrottleFilter*>(node)) return throttle;
  return nullptr;
}

// The disk is meant by its device or by its node, or nothing else can be.
Result<void> check_device(const Json& given, std::initializer_list<const char*> keys) {
  for (const char* key : keys)
    if (const auto name = given.member(key).string();
        name && !name->empty() && *name != kDevice && *name != "node0")
      return Error(ErrorKind::kNotFound,
                   "Cannot find device='" + *name + "' nor node-name='" + *name + "'");
  return {};
}

Result<uint64_t> number(const Json& given, const char* key, uint64_t fallback) {
  if (given.member(key).is_null()) return fallback;
  const auto value = given.member(key).number();
  if (!value)
    return Error(ErrorKind::kInvalid,
                 std::string("Parameter '") + key + "' expects a non-negative number");
  return *value;
}

// QEMU's bursts are a rate and how long it may last; ours an amount.
Result<ThrottleLimits> read_limits(const Json& given) {
  ThrottleLimits limits;
  for (const ThrottleArgument& argument : kThrottleArguments) {
    drivers::Limit& limit = limits.*argument.limit;
    VBDKIT_ASSIGN(limit.rate, number(given, argument.rate, 0));
    VBDKIT_ASSIGN(const uint64_t most, number(given, argument.burst, 0));
    VBDKIT_ASSIGN(const uint64_t seconds, number(given, argument.burst_seconds, 1));
    if (most != 0 && (limit.rate == 0 || most < limit.rate || seconds == 0 || seconds > 3600))
      return Error(ErrorKind::kInvalid, std::string("Parameter '") + argument.burst +
                                            "' wants a '" + argument.rate +
                                            "' below it, and a length of 1 to 3600 seconds");
    if (__builtin_mul_overflow(most, seconds, &limit.burst))
      return Error(ErrorKind::kInvalid,
                   std::string("Parameter '") + argument.burst + "' is too large");
  }
  VBDKIT_ASSIGN(const uint64_t size, number(given, "iops_size", 0));
  if (size != 0) return Error(ErrorKind::kUnsupported, "Parameter 'iops_size' can only be 0");
  return limits;
}

LiveGraph::Done answer(Reply reply) {
  return [held = std::make_shared<Reply>(std::move(reply))](Result<void> result) {
    if (result)
      held->ok();
    else
      held->error(result.error());
  };
}

}  // namespace

DiskSettings::DiskSettings(io::Reactor& reactor, LiveGraph& graph, Events events)
    : reactor_(reactor),
      graph_(graph),
      events_(std::move(events)),
      deadline_timer_(reactor.timer([this] {
        end_pauses();
        events_.resumed_by_time();
      })) {}

void DiskSettings::add_commands(control::CommandTable& commands) {
  commands.add("block_resize", {"device", "node-name", "size"},
               [this](const Json& given, Reply reply) { resize(given, std::move(reply)); });
  std::vector<std::string_view> arguments = {"device", "id", "iops_size"};
  for (const ThrottleArgument& argument : kThrottleArguments)
    for (const char* name : {argument.rate, argument.burst, argument.burst_seconds})
      arguments.push_back(name);
  commands.add("block_set_io_throttle", std::move(arguments),
               [this](const Json& given, Reply reply) { throttle(given, std::move(reply)); });
  commands.add("x-vbdkit-pause", {"timeout-ms"},
               [this](const Json& given, Reply reply) { pause(given, std::move(reply)); });
  commands.add("x-vbdkit-resume", {},
               [this](const Json&, Reply reply) { resume(std::move(reply)); });
}

void DiskSettings::resize(const Json& given, Reply reply) {
  if (auto known = check_device(given, {"device", "node-name"}); !known)
    return reply.error(known.error());
  const auto size = given.member("size").number();
  if (!size || *size == 0 || *size % kSectorSize != 0)
    return reply.error("GenericError",
                       "Parameter 'size' expects bytes, a multiple of 512 and not 0");
  const Bytes wanted{*size};
  graph_.change(
      [wanted](drivers::NodePtr& top) -> Result<void> {
        // What lies beneath may have grown already: a volume has its size from elsewhere.
        VBDKIT_TRY(top->refresh_size());
        if (wanted < top->info().size)
          return Error(ErrorKind::kUnsupported, "a disk in use does not shrink: it has " +
                                                    std::to_string(top->info().size.v) + " bytes");
        return wanted == top->info().size ? Result<void>() : top->resize(wanted);
      },
      [this, done = answer(std::move(reply))](Result<void> result) {
        if (result) events_.resized();
        done(std::move(result));
      });
}

ThrottleLimits DiskSettings::limits() const {
  const ThrottleFilter* const filter = find_throttle(graph_.top());
  return filter == nullptr ? ThrottleLimits{} : filter->limits();
}

void DiskSettings::throttle(const Json& given, Reply reply) {
  if (auto known = check_device(given, {"device", "id"}); !known) return reply.error(known.error());
  const auto limits = read_limits(given);
  if (!limits) return reply.error(limits.error());
  if (ThrottleFilter* const filter = find_throttle(graph_.top())) {
    // At once: a pause would wait for what stands in line there.
    filter->set_limits(*limits);
    events_.state_changed();
    return reply.ok();
  }
  if (*limits == ThrottleLimits{}) return reply.ok();
  graph_.insert_filter(
      LiveGraph::Place::kTop,
      [this, limits = *limits](drivers::NodePtr top) {
        return std::make_unique<ThrottleFilter>(std::move(top), reactor_, limits);
      },
      answer(std::move(reply)));
}

void DiskSettings::pause(const Json& given, Reply reply) {
  if (closed_) return reply.error("GenericError", "The instance is shutting down");
  const auto timeout = number(given, "timeout-ms", kDefaultPause);
  if (!timeout) return reply.error(timeout.error());
  if (*timeout == 0 || *timeout > kLongestPause)
    return reply.error("GenericError",
                       "Parameter 'timeout-ms' expects 1 to " + std::to_string(kLongestPause));
  const auto until = io::Timer::Clock::now() + std::chrono::milliseconds(*timeout);
  deadline_ = pauses_ == 0 ? until : std::max(deadline_, until);
  deadline_timer_->arm(deadline_);
  ++pauses_;
  if (pauses_ == 1) events_.state_changed();
  // std::function wants a copyable target.
  graph_.scheduler().pause([held = std::make_shared<Reply>(std::move(reply))] { held->ok(); });
}

// Of a disk that runs: nothing to be done. Who resumes may have been late.
void DiskSettings::resume(Reply reply) {
  if (pauses_ > 0) {
    --pauses_;
    graph_.scheduler().resume();
    if (pauses_ == 0) {
      deadline_timer_->cancel();
      events_.state_changed();
    }
  }
  reply.ok();
}

void DiskSettings::end_pauses() {
  if (pauses_ == 0) return;
  for (; pauses_ > 0; --pauses_) graph_.scheduler().resume();
  deadline_timer_->cancel();
  events_.state_changed();
}

void DiskSettings::close() {
  closed_ = true;
  end_pauses();
}

}  // namespace vbdkit
