// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/verified_disk.h"

#include <poll.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "tests/sim/io_buffers.h"

namespace vbdkit::sim {

// One run: the requests in flight and the choice of the next.
class VerifiedRun {
 public:
  VerifiedRun(VerifiedDisk& disk, Frontend& front, const WorkloadOptions& options)
      : disk_(disk),
        front_(front),
        options_(options),
        random_(options.seed),
        unit_(std::max<uint32_t>(1, front.features().sector_size / 512)),
        most_segments_(options.max_segments == 0
                           ? front.max_segments()
                           : std::min(options.max_segments, front.max_segments())) {}

  Result<WorkloadReport> random(Deadline deadline);
  Result<WorkloadReport> read_all(Deadline deadline);

 private:
  struct Piece {
    uint32_t page;
    uint8_t first, last;
  };
  struct Request {
    bool busy = false;
    uint8_t operation = 0;
    uint64_t sector = 0;
    uint64_t sectors = 0;
    uint64_t stamp = 0;
    std::vector<Piece> pieces;
  };

  Result<void> prepare();
  uint64_t pick(uint64_t below) { return below == 0 ? 0 : random_() % below; }
  uint8_t pick_operation();
  bool conflicts(const Request& request) const;
  // Cuts `sectors` into pieces of pages, starting and ending anywhere in them. Returns what fits.
  uint64_t cut(Request& request, uint64_t sectors, unsigned segments);
  bool start_random(uint32_t slot);
  void submit(uint32_t slot);
  void finish(const Completion& completion);
  void check_data(uint32_t slot, const Request& request);
  Result<void> drain_some(Deadline deadline);
  Result<WorkloadReport> finished(Deadline deadline);
  void problem(std::string what);
  bool writes(uint8_t operation) const { return operation != BLKIF_OP_READ; }

  VerifiedDisk& disk_;
  Frontend& front_;
  WorkloadOptions options_;
  std::mt19937_64 random_;
  uint32_t unit_;
  unsigned most_segments_;
  std::unique_ptr<IoBuffers> buffers_;
  std::vector<Request> requests_;
  std::vector<Segment> segments_;
  uint32_t in_flight_ = 0;
  size_t next_queue_ = 0;
  WorkloadReport report_;
};

void VerifiedDisk::fill(uint64_t sector, uint64_t stamp, std::byte* data) const {
  // splitmix64 of place and time: no two sectors, and no two writes of one, look alike.
  uint64_t state = sector * 0x9e3779b97f4a7c15 + stamp;
  for (size_t i = 0; i < 512; i += 8) {
    state += 0x9e3779b97f4a7c15;
    uint64_t z = state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    z ^= z >> 31;
    std::memcpy(data + i, &z, 8);
  }
}

bool VerifiedDisk::holds(uint64_t sector, const std::byte* data) const {
  const uint64_t stamp = stamps_[sector];
  if (stamp == kUnknown) return true;
  std::byte expected[512] = {};
  if (stamp != 0) fill(sector, stamp, expected);
  return std::memcmp(data, expected, sizeof expected) == 0;
}

Result<WorkloadReport> VerifiedDisk::run(Frontend& front, const WorkloadOptions& options,
                                         Deadline deadline) {
  return VerifiedRun(*this, front, options).random(deadline);
}

Result<WorkloadReport> VerifiedDisk::check(Frontend& front, Deadline deadline) {
  return VerifiedRun(*this, front, WorkloadOptions{}).read_all(deadline);
}

Result<void> VerifiedRun::prepare() {
  requests_.resize(options_.depth);
  VBDKIT_ASSIGN(buffers_, IoBuffers::create(front_.guest(), options_.depth, most_segments_,
                                            front_.persistent()));
  return {};
}

uint8_t VerifiedRun::pick_operation() {
  uint64_t roll = pick(100);
  const auto below = [&](unsigned percent) {
    if (roll < percent) return true;
    roll -= percent;
    return false;
  };
  if (below(options_.flush_percent)) return BLKIF_OP_FLUSH_DISKCACHE;
  if (below(options_.barrier_percent)) return BLKIF_OP_WRITE_BARRIER;
  if (below(options_.discard_percent)) return BLKIF_OP_DISCARD;
  return pick(100) < options_.write_percent ? BLKIF_OP_WRITE : BLKIF_OP_READ;
}

bool VerifiedRun::conflicts(const Request& request) const {
  return std::ranges::any_of(requests_, [&](const Request& other) {
    return other.busy && (writes(other.operation) || writes(request.operation)) &&
           request.sector < other.sector + other.sectors &&
           other.sector < request.sector + request.sectors;
  });
}

uint64_t VerifiedRun::cut(Request& request, uint64_t sectors, unsigned segments) {
  request.pieces.clear();
  uint64_t left = sectors;
  const uint32_t units_per_page = 8 / unit_;
  while (left != 0 && request.pieces.size() < segments) {
    const auto first = static_cast<uint32_t>(pick(units_per_page)) * unit_;
    const uint64_t room = std::min<uint64_t>(8 - first, left);
    const uint64_t size = room / unit_ == 0 ? room : (1 + pick(room / unit_)) * unit_;
    // Mostly whole pages, as a file system sends them.
    const bool whole = pick(4) != 0 && left >= 8;
    const uint8_t begin = whole ? 0 : static_cast<uint8_t>(first);
    const uint64_t length = whole ? 8 : size;
    request.pieces.push_back({static_cast<uint32_t>(request.pieces.size()), begin,
                              static_cast<uint8_t>(begin + length - 1)});
    left -= length;
  }
  return sectors - left;
}

bool VerifiedRun::start_random(uint32_t slot) {
  Request& request = requests_[slot];
  request.operation = pick_operation();
  request.stamp = 0;
  request.sector = 0;
  request.sectors = 0;
  request.pieces.clear();
  const uint64_t units = disk_.sectors() / unit_;
  if (request.operation == BLKIF_OP_DISCARD) {
    const uint64_t granularity =
        std::max<uint64_t>(unit_, front_.features().discard_granularity / 512);
    const uint64_t places = disk_.sectors() / granularity;
    if (places == 0) return false;
    request.sector = pick(places) * granularity;
    request.sectors = std::min((1 + pick(8)) * granularity, disk_.sectors() - request.sector);
  } else if (request.operation != BLKIF_OP_FLUSH_DISKCACHE || pick(3) == 0) {
    const bool indirect_form =
        request.operation == BLKIF_OP_READ || request.operation == BLKIF_OP_WRITE;
    const unsigned segments =
        indirect_form ? most_segments_
                      : std::min<unsigned>(most_segments_, BLKIF_MAX_SEGMENTS_PER_REQUEST);
    request.sector = pick(units) * unit_;
    const uint64_t room = (disk_.sectors() - request.sector) / unit_;
    // Many small requests, some as large as they get.
    const uint64_t most = pick(8) == 0 ? uint64_t{segments} * 8 / unit_ : 16 / unit_;
    const uint64_t wanted = (1 + pick(std::min(room, std::max<uint64_t>(1, most)))) * unit_;
    request.sectors =
        cut(request, std::min(wanted, room * unit_), 1 + static_cast<unsigned>(pick(segments)));
  }
  if (conflicts(request)) return false;
  submit(slot);
  return true;
}

void VerifiedRun::submit(uint32_t slot) {
  Request& request = requests_[slot];
  const bool is_write = writes(request.operation);
  if (is_write && !request.pieces.empty()) request.stamp = disk_.next_stamp_++;
  uint64_t sector = request.sector;
  segments_.clear();
  for (const Piece& piece : request.pieces) {
    for (uint32_t s = piece.first; s <= piece.last; ++s, ++sector) {
      std::byte* data = buffers_->page(slot, piece.page) + size_t{s} * 512;
      if (is_write)
        disk_.fill(sector, request.stamp, data);
      else
        std::memset(data, 0xee, 512);
    }
    segments_.push_back({buffers_->ref(slot, piece.page), piece.first, piece.last});
  }
  buffers_->begin(slot, static_cast<uint32_t>(request.pieces.size()), !is_write);
  RingQueue& queue = front_.queue(next_queue_);
  if (request.operation == BLKIF_OP_DISCARD)
    queue.submit_discard(request.sector, request.sectors, false, slot);
  else
    queue.submit(request.operation, request.sector, segments_.data(), segments_.size(), slot);
  request.busy = true;
  ++in_flight_;
}

void VerifiedRun::problem(std::string what) {
  if (report_.problems.size() < 32) report_.problems.push_back(std::move(what));
}

void VerifiedRun::check_data(uint32_t slot, const Request& request) {
  uint64_t sector = request.sector;
  for (const Piece& piece : request.pieces)
    for (uint32_t s = piece.first; s <= piece.last; ++s, ++sector) {
      ++report_.sectors_checked;
      if (!disk_.holds(sector, buffers_->page(slot, piece.page) + size_t{s} * 512))
        problem("sector " + std::to_string(sector) + " holds wrong bytes");
    }
}

void VerifiedRun::finish(const Completion& completion) {
  const auto slot = static_cast<uint32_t>(completion.tag);
  Request& request = requests_[slot];
  request.busy = false;
  --in_flight_;
  if (!buffers_->end(slot, static_cast<uint32_t>(request.pieces.size())))
    problem("a page of an answered request is still mapped");
  if (completion.status != BLKIF_RSP_OKAY) {
    problem("operation " + std::to_string(request.operation) + " at sector " +
            std::to_string(request.sector) + " ended with status " +
            std::to_string(completion.status));
    return;
  }
  switch (request.operation) {
    case BLKIF_OP_READ:
      ++report_.reads;
      check_data(slot, request);
      return;
    case BLKIF_OP_WRITE:
      ++report_.writes;
      break;
    case BLKIF_OP_FLUSH_DISKCACHE:
      ++report_.flushes;
      break;
    case BLKIF_OP_WRITE_BARRIER:
      ++report_.barriers;
      break;
    default:
      ++report_.discards;
      break;
  }
  const uint64_t stamp =
      request.operation == BLKIF_OP_DISCARD ? VerifiedDisk::kUnknown : request.stamp;
  for (uint64_t s = request.sector; s < request.sector + request.sectors; ++s)
    disk_.stamps_[s] = stamp;
}

// Takes what has been answered; sleeps where nothing has.
Result<void> VerifiedRun::drain_some(Deadline deadline) {
  for (;;) {
    size_t reaped = 0;
    for (size_t q = 0; q < front_.queue_count(); ++q) {
      RingQueue& queue = front_.queue(q);
      queue.push();
      reaped += queue.reap([&](const Completion& c) { finish(c); });
      if (!queue.violations().empty())
        return Error(ErrorKind::kProtocol, "workload: " + queue.violations().front());
    }
    if (reaped != 0) return {};
    std::vector<pollfd> fds;
    for (size_t q = 0; q < front_.queue_count(); ++q)
      fds.push_back({front_.queue(q).events().fd(), POLLIN, 0});
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0)
      return Error(ErrorKind::kTimedOut,
                   "workload: " + std::to_string(in_flight_) + " requests were never answered");
    ::poll(fds.data(), fds.size(), static_cast<int>(left.count()));
    for (size_t q = 0; q < fds.size(); ++q)
      if (fds[q].revents != 0) (void)front_.queue(q).wait(deadline);
  }
}

Result<WorkloadReport> VerifiedRun::finished(Deadline deadline) {
  while (in_flight_ != 0) VBDKIT_TRY(drain_some(deadline));
  return std::move(report_);
}

Result<WorkloadReport> VerifiedRun::random(Deadline deadline) {
  VBDKIT_TRY(prepare());
  for (uint64_t done = 0; done < options_.requests;) {
    bool full = true;
    for (uint32_t slot = 0; slot < requests_.size() && done < options_.requests; ++slot) {
      if (requests_[slot].busy) continue;
      next_queue_ = (next_queue_ + 1) % front_.queue_count();
      if (front_.queue(next_queue_).free_slots() == 0) continue;
      if (start_random(slot))
        ++done;
      else
        full = false;
    }
    if (in_flight_ != 0 && (full || pick(2) == 0)) VBDKIT_TRY(drain_some(deadline));
  }
  return finished(deadline);
}

Result<WorkloadReport> VerifiedRun::read_all(Deadline deadline) {
  VBDKIT_TRY(prepare());
  for (uint64_t sector = 0; sector < disk_.sectors();) {
    const auto free = std::ranges::find_if(requests_, [](const Request& r) { return !r.busy; });
    next_queue_ = (next_queue_ + 1) % front_.queue_count();
    if (free == requests_.end() || front_.queue(next_queue_).free_slots() == 0) {
      VBDKIT_TRY(drain_some(deadline));
      continue;
    }
    free->operation = BLKIF_OP_READ;
    free->sector = sector;
    free->pieces.clear();
    free->sectors = std::min<uint64_t>(uint64_t{most_segments_} * 8, disk_.sectors() - sector);
    for (uint64_t at = 0; at < free->sectors; at += 8)
      free->pieces.push_back({static_cast<uint32_t>(at / 8), 0,
                              static_cast<uint8_t>(std::min<uint64_t>(8, free->sectors - at) - 1)});
    sector += free->sectors;
    submit(static_cast<uint32_t>(free - requests_.begin()));
  }
  return finished(deadline);
}

}  // namespace vbdkit::sim
