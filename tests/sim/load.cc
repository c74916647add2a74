// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/load.h"

#include <dirent.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>
#include <thread>

#include "tests/sim/io_buffers.h"

namespace vbdkit::sim {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kLost{10};

uint64_t nanoseconds(Clock::duration d) {
  return static_cast<uint64_t>(std::chrono::nanoseconds(d).count());
}

// What drives one queue.
class Driver {
 public:
  Driver(Frontend& front, size_t queue, const LoadOptions& options, IoBuffers& buffers)
      : queue_(front.queue(queue)),
        options_(options),
        buffers_(buffers),
        pages_((options.block_bytes + 4095) / 4096),
        random_(0x9e3779b97f4a7c15 * (queue + 1)),
        started_(options.depth) {
    const uint64_t disk = front.features().sectors * 512;
    const uint64_t area = options.area_bytes == 0 ? disk : std::min(disk, options.area_bytes);
    blocks_ = std::max<uint64_t>(1, area / options.block_bytes);
    next_block_ = blocks_ / front.queue_count() * queue;
    for (unsigned i = 0; i < options.depth; ++i)
      for (uint32_t p = 0; p < pages_; ++p) {
        const uint32_t left = std::min<uint32_t>(4096, options.block_bytes - p * 4096);
        segments_.push_back({buffers.ref(i, p), 0, static_cast<uint8_t>(left / 512 - 1)});
      }
    scratch_.resize(options.block_bytes);
  }

  Result<LoadReport> run() {
    const uint64_t notifies = queue_.notifies_sent();
    const uint64_t events = queue_.events_received();
    const Clock::time_point begin = Clock::now();
    const Clock::time_point end =
        begin + std::chrono::nanoseconds(static_cast<int64_t>(options_.seconds * 1e9));
    Clock::time_point now = begin;
    for (uint32_t i = 0; i < options_.depth; ++i) start(i, now);
    queue_.push();
    while (in_flight_ != 0) {
      bool any = false;
      while (const auto completion = queue_.next_response()) {
        if (!any) now = Clock::now();
        any = true;
        finish(*completion, now);
        const bool more = options_.ios != 0 ? issued_ < options_.ios : now < end;
        if (more) start(static_cast<uint32_t>(completion->tag), now);
      }
      queue_.push();
      if (any || options_.spin) continue;
      if (!queue_.violations().empty()) break;
      if (in_flight_ != 0 && !queue_.wait(Clock::now() + kLost))
        return Error(ErrorKind::kTimedOut,
                     "load: " + std::to_string(in_flight_) + " requests are not answered");
    }
    report_.seconds = std::chrono::duration<double>(now - begin).count();
    report_.notifies_sent = queue_.notifies_sent() - notifies;
    report_.events_received = queue_.events_received() - events;
    if (!queue_.violations().empty()) report_.violation = queue_.violations().front();
    return std::move(report_);
  }

 private:
  uint64_t pick_block() {
    if (!options_.random) {
      next_block_ = next_block_ + 1 >= blocks_ ? 0 : next_block_ + 1;
      return next_block_;
    }
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_ % blocks_;
  }

  void start(uint32_t buffer, Clock::time_point now) {
    const bool is_read = options_.operation == BLKIF_OP_READ;
    if (options_.copy_data && !is_read) copy(buffer, true);
    buffers_.begin(buffer, pages_, is_read);
    queue_.submit(options_.operation, pick_block() * (options_.block_bytes / 512),
                  &segments_[size_t{buffer} * pages_], pages_, buffer);
    started_[buffer] = now;
    ++issued_;
    ++in_flight_;
  }

  void finish(const Completion& completion, Clock::time_point now) {
    const auto buffer = static_cast<uint32_t>(completion.tag);
    if (!buffers_.end(buffer, pages_) || completion.status != BLKIF_RSP_OKAY) ++report_.errors;
    if (options_.copy_data && options_.operation == BLKIF_OP_READ) copy(buffer, false);
    report_.latency.add(nanoseconds(now - started_[buffer]));
    ++report_.ios;
    --in_flight_;
  }

  void copy(uint32_t buffer, bool to_guest) {
    if (to_guest)
      std::memcpy(buffers_.page(buffer, 0), scratch_.data(), scratch_.size());
    else
      std::memcpy(scratch_.data(), buffers_.page(buffer, 0), scratch_.size());
  }

  RingQueue& queue_;
  const LoadOptions& options_;
  IoBuffers& buffers_;
  uint32_t pages_;
  uint64_t random_;
  uint64_t blocks_ = 1;
  uint64_t next_block_ = 0;
  std::vector<Clock::time_point> started_;
  std::vector<Segment> segments_;
  std::vector<std::byte> scratch_;
  uint64_t issued_ = 0;
  unsigned in_flight_ = 0;
  LoadReport report_;
};

}  // namespace

Result<LoadReport> run_load(Frontend& front, const LoadOptions& options) {
  const uint32_t pages = (options.block_bytes + 4095) / 4096;
  if (options.block_bytes == 0 || options.block_bytes % 512 != 0 || pages > front.max_segments())
    return Error(ErrorKind::kInvalid, "load: a block of " + std::to_string(options.block_bytes) +
                                          " bytes does not fit one request");
  if (options.depth == 0 || options.depth > front.queue().raw().slots())
    return Error(ErrorKind::kInvalid, "load: depth " + std::to_string(options.depth) +
                                          " does not fit a ring of " +
                                          std::to_string(front.queue().raw().slots()));
  std::vector<std::unique_ptr<IoBuffers>> buffers;
  std::vector<std::unique_ptr<Driver>> drivers;
  for (size_t q = 0; q < front.queue_count(); ++q) {
    VBDKIT_ASSIGN(auto pool,
                  IoBuffers::create(front.guest(), options.depth, pages, front.persistent()));
    buffers.push_back(std::move(pool));
    drivers.push_back(std::make_unique<Driver>(front, q, options, *buffers.back()));
  }
  std::vector<Result<LoadReport>> reports(drivers.size(), LoadReport{});
  std::vector<std::thread> threads;
  for (size_t q = 1; q < drivers.size(); ++q)
    threads.emplace_back([&, q] { reports[q] = drivers[q]->run(); });
  reports[0] = drivers[0]->run();
  for (auto& thread : threads) thread.join();
  LoadReport sum;
  for (auto& report : reports) {
    if (!report) return std::move(report).error();
    sum.ios += report->ios;
    sum.errors += report->errors;
    sum.seconds = std::max(sum.seconds, report->seconds);
    sum.latency.merge(report->latency);
    sum.notifies_sent += report->notifies_sent;
    sum.events_received += report->events_received;
    if (sum.violation.empty()) sum.violation = report->violation;
  }
  return sum;
}

uint64_t cpu_nanoseconds(pid_t pid) {
  const std::string tasks = "/proc/" + std::to_string(pid) + "/task";
  uint64_t sum = 0;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(tasks.c_str()), ::closedir);
  if (dir == nullptr) return 0;
  while (const dirent* entry = ::readdir(dir.get())) {
    if (entry->d_name[0] == '.') continue;  // "..": the process, which is its first thread again
    uint64_t running = 0;
    std::ifstream(tasks + "/" + entry->d_name + "/schedstat") >> running;
    sum += running;
  }
  return sum;
}

MemoryUse memory_use(pid_t pid) {
  // What only the simulation brings in: the replacement library with the C++ runtime it is linked
  // to, and the guests' memory.
  static constexpr const char* kSimulation[] = {"libsimxen", "memfd:simxen", "libstdc++",
                                                "libgcc_s", "libm.so"};
  std::ifstream in("/proc/" + std::to_string(pid) + "/smaps");
  MemoryUse use;
  bool simulation = false;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string name;
    uint64_t kib = 0;
    words >> name >> kib;
    if (!name.ends_with(':')) {
      simulation = std::ranges::any_of(
          kSimulation, [&](const char* part) { return line.find(part) != line.npos; });
    } else if (name == "Rss:") {
      use.rss_kib += kib;
    } else if (name == "Pss:") {
      use.pss_kib += kib;
      if (!simulation) use.own_pss_kib += kib;
    }
  }
  return use;
}

}  // namespace vbdkit::sim
