// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/log_filter.h"

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <numeric>

#include "drivers/drivers.h"
#include "drivers/options.h"

namespace vbdkit::drivers {
namespace {

constexpr const char* kOpNames[kOpCount] = {"read", "write", "flush", "discard", "write-zeroes"};

constexpr const char* kKeys[] = {"level", "name", "ops", "rate", "slower-than", "summary"};

Error invalid(std::string message) { return Error(ErrorKind::kInvalid, std::move(message)); }

// "read+write"; commas separate keys.
Result<std::array<bool, kOpCount>> parse_ops(std::string_view list) {
  std::array<bool, kOpCount> ops{};
  for (;;) {
    const size_t plus = list.find('+');
    const std::string_view name = list.substr(0, plus);
    const auto found = std::ranges::find(kOpNames, name);
    if (found == std::end(kOpNames))
      return invalid("log: ops: '" + std::string(name) +
                     "' is none of read, write, flush, discard, write-zeroes");
    ops[static_cast<size_t>(found - kOpNames)] = true;
    if (plus == std::string_view::npos) return ops;
    list.remove_prefix(plus + 1);
  }
}

Result<LogOptions> read_options(const NodeSpec& spec) {
  const OptionReader reader(spec);
  LogOptions options;
  if (reader.has("level")) {
    VBDKIT_ASSIGN(options.level, parse_log_level(spec.options.at("level")));
  }
  if (reader.has("name")) options.name = spec.options.at("name");
  if (reader.has("ops")) {
    VBDKIT_ASSIGN(options.ops, parse_ops(spec.options.at("ops")));
  }
  constexpr uint64_t kMost = 1'000'000'000;
  VBDKIT_ASSIGN(const uint64_t rate, reader.number("rate", options.rate));
  VBDKIT_ASSIGN(const uint64_t slower_than, reader.number("slower-than", 0));
  VBDKIT_ASSIGN(const uint64_t summary, reader.number("summary", 0));
  options.rate = static_cast<unsigned>(std::min(rate, kMost));
  options.slower_than = std::chrono::milliseconds(std::min(slower_than, kMost));
  options.summary = std::chrono::seconds(std::min(summary, kMost));
  return options;
}

double milliseconds(std::chrono::nanoseconds time) {
  return std::chrono::duration<double, std::milli>(time).count();
}

}  // namespace

LogFilter::LogFilter(NodePtr next, const NodeSpec& spec, LogOptions options,
                     const OpenContext& context, Clock clock)
    : Filter(std::move(next)),
      spec_(spec),
      options_(std::move(options)),
      label_(options_.name.empty() ? "log" : "log " + options_.name),
      log_(context.log),
      clock_(std::move(clock)),
      limit_(options_.rate, std::chrono::seconds(1)),
      timer_(context.reactor.timer([this] {
        write_summary();
        arm_summary();
      })) {
  arm_summary();
}

LogFilter::~LogFilter() { write_summary(); }

void LogFilter::arm_summary() {
  if (options_.summary.count() != 0) timer_->arm(clock_() + options_.summary);
}

void LogFilter::submit(Request& request) {
  if (request.op == Op::kCopy) {
    next().submit(request);
    return;
  }
  Watched& watched = pool_.take();
  copy_request(request, watched);
  watched.filter = this;
  watched.origin = &request;
  watched.start = clock_();
  watched.done = [](Request& r, int error) {
    auto& w = static_cast<Watched&>(r);
    w.filter->done(w, error);
  };
  ++counters_.in_flight;
  next().submit(watched);
}

void LogFilter::done(Watched& watched, int error) {
  const std::chrono::nanoseconds took = clock_() - watched.start;
  LogCounters::PerOp& op = counters_.ops[static_cast<size_t>(watched.op)];
  ++op.requests;
  op.bytes += watched.length;
  --counters_.in_flight;
  if (error != 0) ++counters_.failed;
  counters_.slowest = std::max(counters_.slowest, took);
  if (log_.enabled(options_.level)) write_line(watched, error, took);
  Request& origin = *watched.origin;
  pool_.give(watched);
  origin.done(origin, error);
}

void LogFilter::write_line(const Watched& w, int error, std::chrono::nanoseconds took) {
  const auto op = static_cast<size_t>(w.op);
  if (error == 0 && (!options_.ops[op] || took < options_.slower_than)) return;
  uint64_t suppressed = 0;
  if (options_.rate != 0 && !limit_.allow(clock_(), &suppressed)) return;
  char left_out[48] = "";
  if (suppressed != 0)
    snprintf(left_out, sizeof left_out, " (%" PRIu64 " lines left out before)", suppressed);
  char range[48] = "";
  if (w.op != Op::kFlush)
    snprintf(range, sizeof range, " %" PRIu64 "+%" PRIu64, w.offset, w.length);
  log_.log(options_.level, "%s: %s%s%s%s: %s, %.3f ms%s", label_.c_str(), kOpNames[op], range,
           w.flags & kFua ? " fua" : "", w.flags & kMayUnmap ? " may-unmap" : "",
           error == 0 ? "ok" : strerror(error), milliseconds(took), left_out);
}

void LogFilter::write_summary() {
  const auto& ops = counters_.ops;
  const uint64_t requests =
      std::accumulate(ops.begin(), ops.end(), uint64_t{0},
                      [](uint64_t sum, const auto& op) { return sum + op.requests; });
  if (requests == summed_up_) return;
  summed_up_ = requests;
  std::string text;
  for (size_t i = 0; i < kOpCount; ++i) {
    if (ops[i].requests == 0) continue;
    text += std::string(kOpNames[i]) + " " + std::to_string(ops[i].requests);
    if (ops[i].bytes != 0) text += " (" + std::to_string(ops[i].bytes) + " bytes)";
    text += ", ";
  }
  log_.log(options_.level, "%s: %sfailed %" PRIu64 ", in flight %" PRIu64 ", slowest %.3f ms",
           label_.c_str(), text.c_str(), counters_.failed, counters_.in_flight,
           milliseconds(counters_.slowest));
}

namespace {

Result<NodePtr> open_log(const NodeSpec& spec, NodePtr next, const OpenContext& context) {
  auto options = read_options(spec);
  if (!options) return std::move(options).error();
  return NodePtr(
      std::make_unique<LogFilter>(std::move(next), spec, std::move(options).value(), context));
}

}  // namespace

DriverEntry log_driver() {
  return {"log", "logs requests and counts them", true, false, kKeys, open_log};
}

}  // namespace vbdkit::drivers
