// SPDX-License-Identifier: LGPL-2.1-or-later
//
// raw: a file or block device as it is. Aligned requests go to the reactor as they come; what the
// kernel would refuse goes through the bounce pool.
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <climits>
#include <cstddef>
#include <vector>

#include "drivers/drivers.h"
#include "drivers/file_lock.h"
#include "drivers/options.h"
#include "drivers/raw_bounce.h"
#include "drivers/raw_file.h"
#include "drivers/stored_image.h"

namespace vbdkit::drivers {
namespace {

// Waking a worker takes as long as copying some tens of kilobytes.
constexpr uint64_t kWorthAWorker = 256 << 10;  // bytes
constexpr int kPunchHole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
constexpr int kZeroRange = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;

struct RawOptions {
  bool direct = true;
  bool discard = true;
  bool locking = true;
  uint32_t align = 0;
};

Result<RawOptions> read_options(const NodeSpec& spec) {
  const OptionReader reader(spec);
  RawOptions options;
  VBDKIT_ASSIGN(options.direct, reader.flag("direct", true));
  VBDKIT_ASSIGN(options.discard, reader.flag("discard", true));
  VBDKIT_ASSIGN(options.locking, reader.flag("locking", true));
  VBDKIT_ASSIGN(const uint64_t align, reader.size("align", 0));
  if (align != 0 && (!std::has_single_bit(align) || align < 512 || align > 65536))
    return Error(ErrorKind::kInvalid, "raw: align=" + spec.options.at("align") +
                                          ": expected a power of two from 512 to 64K");
  options.align = static_cast<uint32_t>(align);
  return options;
}

LockMode lock_mode(bool read_only, bool shared, bool readers) {
  if (readers && !read_only) return LockMode::kCoalescer;
  if (shared) return read_only ? LockMode::kSharedReader : LockMode::kSharedWriter;
  return read_only ? LockMode::kReader : LockMode::kWriter;
}

Request& request_of(io::FileOp& op) {
  return *reinterpret_cast<Request*>(reinterpret_cast<char*>(&op) - offsetof(Request, file_op));
}

RawFile& file_of(const Request& request) { return *static_cast<RawFile*>(request.owner); }

}  // namespace

class RawNode final : public Node, private BouncePool::Client {
 public:
  RawNode(const NodeSpec& spec, const RawOptions& options, const OpenContext& context)
      : spec_(spec),
        options_(options),
        shared_(context.options.shared),
        readers_(context.options.readers),
        child_(context.options.child),
        ignore_flush_(context.options.ignore_flush),
        locked_(!context.options.lock_later),
        reactor_(context.reactor),
        log_(context.log),
        bounce_(reactor_, *this) {}
  // io_uring can hold the file, and with it the lock, for a moment after its descriptor is closed.
  ~RawNode() override {
    if (file_ != nullptr && options_.locking) unlock_image(file_->fd.get());
  }

  Result<void> open(bool read_only);

  std::string_view driver() const override { return "raw"; }
  std::string spec() const override { return GraphSpec{{spec_}}.to_string(); }
  const NodeInfo& info() const override { return info_; }
  void submit(Request& request) override;
  void block_status(StatusRequest& request) override;
  Result<void> refresh_size() override;
  Result<void> resize(Bytes size) override;
  Result<void> reopen(bool read_only) override;
  std::string identity() const override;
  void list_images(std::vector<StoredImage>& images) const override;
  void renamed(const std::string& path) override { spec_.path = path; }
  Result<void> share(Sharing sharing) override;
  Result<void> readers_gone() override;

 private:
  const std::string& path() const { return spec_.path; }
  Result<std::unique_ptr<RawFile>> open_locked(bool read_only);
  Result<void> take_locks(const RawFile& file);
  Result<void> take_size(RawFile& file);
  void describe(const RawFile& file);

  void submit_transfer(Request& request);
  void submit_discard(Request& request);
  void submit_write_zeroes(Request& request);
  void submit_fallocate(Request& request, int mode);
  void submit_sync(Request& request);
  void transferred(Request& request, int64_t result);
  void fallocated(Request& request, int64_t result);
  int discard_by_ioctl(const Request& request);
  void bounced(Request& request, int error) override { finish(request, error); }
  void direct_refused(RawFile& file) override;
  void finish(Request& request, int error);

  NodeSpec spec_;
  const RawOptions options_;
  const bool shared_;
  bool readers_;             // OpenOptions::readers
  const std::string child_;  // OpenOptions::child
  const bool ignore_flush_;
  bool locked_;  // OpenOptions::lock_later
  io::Reactor& reactor_;
  const Logger& log_;
  NodeInfo info_;
  std::unique_ptr<RawFile> file_;
  Sharing sharing_ = Sharing::kAsOpened;
  std::vector<std::unique_ptr<RawFile>> retired_;  // replaced by a reopen, with requests in flight
  Fd claim_;  // keeps the system from mounting a block device that a guest writes
  // What fallocate(2) answered EOPNOTSUPP to is not asked again.
  bool can_punch_ = false;
  bool can_zero_range_ = true;
  bool tail_reported_ = false;
  BouncePool bounce_;
};

Result<void> RawNode::open(bool read_only) {
  VBDKIT_ASSIGN(auto file, open_locked(read_only));
  if (options_.direct && !file->direct())
    log_.notice("raw: %s: direct I/O is not possible here; using the page cache", path().c_str());
  VBDKIT_TRY(take_size(*file));
  describe(*file);
  file->node = this;
  file_ = std::move(file);
  return {};
}

Result<std::unique_ptr<RawFile>> RawNode::open_locked(bool read_only) {
  constexpr unsigned kTries = 16;
  for (unsigned i = 1;; ++i) {
    VBDKIT_ASSIGN(auto file, RawFile::open(path(), read_only, options_.direct, options_.align));
    if (locked_) VBDKIT_TRY(take_locks(*file));
    if (!options_.locking) return file;
    // What has the name when the lock is taken is what is meant: nothing of it was read before.
    const auto named = check_name(file->fd.get(), path());
    if (named) return file;
    if (i == kTries) return named.error();
  }
}

Result<void> RawNode::take_locks(const RawFile& file) {
  if (!options_.locking) return {};
  const bool claim = file.facts.block_device && !file.read_only && !shared_;
  if (claim && !claim_.valid()) {
    auto fd = Fd::open(path(), O_RDONLY | O_EXCL);
    if (!fd && fd.error().sys_errno() == EBUSY)
      return Error(ErrorKind::kBusy,
                   "open " + path() + ": the device is mounted, or part of another device", EBUSY);
    VBDKIT_ASSIGN(claim_, std::move(fd));
  }
  sharing_ = Sharing::kAsOpened;
  auto locked = lock_image(file.fd.get(), path(), lock_mode(file.read_only, shared_, readers_));
  if (!locked && file.read_only && !shared_ && !child_.empty() && is_merging(child_)) {
    sharing_ = Sharing::kCoalescer;
    locked = lock_image(file.fd.get(), path(), LockMode::kYieldingReader);
  }
  VBDKIT_TRY(std::move(locked));
  if (!claim) claim_.reset();
  return {};
}

Result<void> RawNode::share(Sharing sharing) {
  if (!locked_) {
    VBDKIT_TRY(take_locks(*file_));
    locked_ = true;
  }
  if (!options_.locking || shared_ || sharing == sharing_) return {};
  const auto mode = [&](Sharing s) {
    return s == Sharing::kCoalescer ? LockMode::kYieldingReader
           : s == Sharing::kReaders ? LockMode::kReader
                                    : lock_mode(file_->read_only, false, readers_);
  };
  if (!file_->read_only && sharing == Sharing::kCoalescer)
    return Error(ErrorKind::kInvalid, path() + ": is open for writing here", EINVAL);
  auto locked = lock_image(file_->fd.get(), path(), mode(sharing));
  if (locked) {
    sharing_ = sharing;
    return {};
  }
  VBDKIT_TRY(lock_image(file_->fd.get(), path(), mode(sharing_)));
  return locked;
}

Result<void> RawNode::readers_gone() {
  readers_ = false;
  if (!options_.locking) return {};
  return lock_image(file_->fd.get(), path(), lock_mode(file_->read_only, shared_, readers_));
}

Result<void> RawNode::take_size(RawFile& file) {
  VBDKIT_ASSIGN(const Bytes size,
                probe_size(file.fd.get(), file.facts.block_device, "size of " + path()));
  const Bytes usable{align_down(size.v, file.facts.logical_block)};
  if (usable.v == 0)
    return Error(ErrorKind::kInvalid,
                 path() + ": smaller than one sector (" + std::to_string(size.v) + " bytes)");
  if (usable != size && !std::exchange(tail_reported_, true))
    log_.notice("raw: %s: its last %llu bytes are no whole sector and are not part of the disk",
                path().c_str(), static_cast<unsigned long long>(size.v - usable.v));
  // The last block could be written directly only by growing the file.
  if ((usable.v & file.block_mask) != 0) {
    log_.notice(
        "raw: %s: its size is not a multiple of %llu, as direct I/O needs it here; using "
        "the page cache",
        path().c_str(), static_cast<unsigned long long>(file.block_mask + 1));
    file.leave_direct();
  }
  info_.size = usable;
  return {};
}

void RawNode::describe(const RawFile& file) {
  const FileFacts& facts = file.facts;
  can_punch_ = facts.discard_granularity != 0 && !file.read_only;
  info_.request_alignment = facts.logical_block;
  info_.logical_block = facts.logical_block;
  info_.physical_block = std::max(facts.physical_block, facts.logical_block);
  info_.read_only = file.read_only;
  info_.can_discard = can_punch_ && options_.discard;
  info_.discard_granularity = info_.can_discard ? facts.discard_granularity : 0;
  info_.can_write_zeroes = !file.read_only && can_zero_range_;
  info_.volatile_cache = !file.read_only && !ignore_flush_;
  info_.rotational = facts.rotational;
}

// Every change of a file changes its time of change, but for one within the same tick of the clock
// that files are stamped with. Devices have no such time.
std::string RawNode::identity() const {
  struct stat st {};
  timespec now{};
  if (file_->facts.block_device || !file_->read_only || fstat(file_->fd.get(), &st) != 0 ||
      clock_gettime(CLOCK_REALTIME_COARSE, &now) != 0)
    return {};
  const timespec& changed = st.st_ctim;
  if (std::pair(now.tv_sec, now.tv_nsec) <= std::pair(changed.tv_sec, changed.tv_nsec)) return {};
  std::string name = "file";
  for (const auto part : {static_cast<int64_t>(st.st_dev), static_cast<int64_t>(st.st_ino),
                          static_cast<int64_t>(st.st_size), static_cast<int64_t>(changed.tv_sec),
                          static_cast<int64_t>(changed.tv_nsec)})
    name += ":" + std::to_string(part);
  return name;
}

void RawNode::list_images(std::vector<StoredImage>& images) const {
  StoredImage image{.format = "raw",
                    .path = path(),
                    .block_device = file_->facts.block_device,
                    .size = info_.size.v,
                    .read_only = file_->read_only};
  struct stat st {};
  if (fstat(file_->fd.get(), &st) == 0) {
    image.device = image.block_device ? st.st_rdev : st.st_dev;
    image.inode = st.st_ino;
  }
  int generation = 0;
  if (!image.block_device && ioctl(file_->fd.get(), FS_IOC_GETVERSION, &generation) == 0)
    image.generation = static_cast<uint32_t>(generation);
  images.push_back(std::move(image));
}

void RawNode::submit(Request& request) {
  if (request.op != Op::kRead && request.op != Op::kFlush && info_.read_only) {
    request.done(request, EROFS);
    return;
  }
  if (request.op != Op::kFlush && !range_inside(request.offset, request.length, info_.size.v)) {
    request.done(request, EINVAL);
    return;
  }
  if (request.op == Op::kFlush && ignore_flush_) {
    request.done(request, 0);
    return;
  }
  if (request.op == Op::kCopy) {
    request.done(request, EOPNOTSUPP);
    return;
  }
  request.owner = file_.get();
  ++file_->in_flight;
  switch (request.op) {
    case Op::kRead:
    case Op::kWrite:
      if (file_->aligned(request) && request.iov_count <= IOV_MAX) [[likely]]
        submit_transfer(request);
      else
        bounce_.start(request);
      return;
    case Op::kFlush:
      submit_sync(request);
      return;
    case Op::kDiscard:
      submit_discard(request);
      return;
    case Op::kWriteZeroes:
      submit_write_zeroes(request);
      return;
    case Op::kCopy:
      break;
  }
}

void RawNode::submit_transfer(Request& request) {
  io::FileOp& op = request.file_op;
  const bool write = request.op == Op::kWrite;
  op.kind = write ? io::FileOp::Kind::kWrite : io::FileOp::Kind::kRead;
  op.fd = file_of(request).fd.get();
  const bool durable = write && (request.flags & kFua);
  op.rw_flags = durable ? RWF_DSYNC : 0;
  op.copies_only = file_of(request).only_copies(write, durable);
  op.bulk = (request.flags & kBulk) != 0 && request.length >= kWorthAWorker;
  op.iov = request.iov;
  op.iov_count = request.iov_count;
  op.offset = request.offset;
  op.done = [](io::FileOp& o, int64_t result) {
    Request& r = request_of(o);
    RawNode* const node = file_of(r).node;
    if (result == static_cast<int64_t>(r.length)) [[likely]]
      node->finish(r, 0);
    else
      node->transferred(r, result);
  };
  reactor_.submit(op);
}

// A transfer that failed or stopped short.
void RawNode::transferred(Request& request, int64_t result) {
  if (result == -EINTR || result == -EAGAIN) {
    reactor_.submit(request.file_op);
  } else if (result >= 0) {
    bounce_.start(request);
  } else if (result == -EINVAL && options_.direct) {
    direct_refused(file_of(request));
    bounce_.start(request);
  } else {
    finish(request, static_cast<int>(-result));
  }
}

void RawNode::direct_refused(RawFile& file) {
  if (!file.direct()) return;
  log_.notice("raw: %s: the kernel refused direct I/O; using the page cache", path().c_str());
  file.leave_direct();
}

void RawNode::submit_discard(Request& request) {
  const RawFile& file = file_of(request);
  if (!info_.can_discard) {
    finish(request, EOPNOTSUPP);
    return;
  }
  if (!can_punch_) {
    finish(request, discard_by_ioctl(request));
    return;
  }
  // Only whole blocks: the kernel would zero a part of one through the page cache, beside which a
  // direct write of another part of it may be under way.
  const uint64_t start = align_up(request.offset, file.block_mask + 1);
  const uint64_t end = align_down(request.offset + request.length, file.block_mask + 1);
  if (start >= end) {
    finish(request, 0);
    return;
  }
  request.file_op.offset = start;
  request.file_op.length = end - start;
  submit_fallocate(request, kPunchHole);
}

// Devices that can discard but give no promise of zeroes afterwards (thin volumes among them).
int RawNode::discard_by_ioctl(const Request& request) {
  const uint64_t range[2] = {request.offset, request.length};
  if (ioctl(file_of(request).fd.get(), BLKDISCARD, &range) == 0) return 0;
  const int error = errno;
  if (error == EOPNOTSUPP) {
    info_.can_discard = false;
    info_.discard_granularity = 0;
  }
  return error;
}

void RawNode::submit_write_zeroes(Request& request) {
  request.file_op.offset = request.offset;
  request.file_op.length = request.length;
  if (request.length == 0)
    finish(request, 0);
  else if (!file_of(request).block_aligned(request))
    bounce_.start(request);
  else if ((request.flags & kMayUnmap) && info_.can_discard && can_punch_)
    submit_fallocate(request, kPunchHole);
  else if (can_zero_range_)
    submit_fallocate(request, kZeroRange);
  else
    bounce_.start(request);
}

void RawNode::submit_fallocate(Request& request, int mode) {
  io::FileOp& op = request.file_op;
  op.kind = io::FileOp::Kind::kFallocate;
  op.fd = file_of(request).fd.get();
  op.fallocate_mode = mode;
  op.done = [](io::FileOp& o, int64_t result) {
    Request& r = request_of(o);
    file_of(r).node->fallocated(r, result);
  };
  reactor_.submit(op);
}

void RawNode::fallocated(Request& request, int64_t result) {
  if (result == -EINTR || result == -EAGAIN) {
    reactor_.submit(request.file_op);
    return;
  }
  if (result == -EOPNOTSUPP) {
    if (request.file_op.fallocate_mode == kPunchHole) {
      can_punch_ = false;
      if (!file_of(request).facts.block_device) info_.can_discard = false;
    } else {
      can_zero_range_ = false;
      info_.can_write_zeroes = false;
    }
    if (request.op == Op::kDiscard)
      submit_discard(request);
    else
      submit_write_zeroes(request);
    return;
  }
  if (result == 0 && (request.flags & kFua))
    submit_sync(request);
  else
    finish(request, static_cast<int>(-result));
}

void RawNode::submit_sync(Request& request) {
  io::FileOp& op = request.file_op;
  op.kind = io::FileOp::Kind::kDataSync;
  op.fd = file_of(request).fd.get();
  op.done = [](io::FileOp& o, int64_t result) {
    Request& r = request_of(o);
    RawNode* const node = file_of(r).node;
    if (result == -EINTR || result == -EAGAIN)
      node->reactor_.submit(o);
    else
      node->finish(r, static_cast<int>(-result));
  };
  reactor_.submit(op);
}

void RawNode::finish(Request& request, int error) {
  RawFile& file = file_of(request);
  if (--file.in_flight == 0 && &file != file_.get()) [[unlikely]]
    std::erase_if(retired_, [&](const auto& f) { return f.get() == &file; });
  request.done(request, error);
}

void RawNode::block_status(StatusRequest& request) {
  const int fd = file_->fd.get();
  const bool by_seeking = !file_->facts.block_device;
  uint64_t position = request.offset;
  const uint64_t end = request.offset + request.length;
  while (position < end && request.extents.size() < std::max<size_t>(request.max_extents, 1)) {
    // A file system that does not know its holes says that all is data.
    const off_t data = by_seeking ? lseek(fd, static_cast<off_t>(position), SEEK_DATA) : -1;
    if (data < 0 && (!by_seeking || errno != ENXIO)) {
      request.extents.push_back({end - position, true, false});
      break;
    }
    uint64_t next = data < 0 ? end : std::min(end, static_cast<uint64_t>(data));
    const bool hole = next > position;
    if (!hole) {
      const off_t stop = lseek(fd, data, SEEK_HOLE);
      next = stop < 0 ? end : std::min(end, static_cast<uint64_t>(stop));
    }
    request.extents.push_back({next - position, !hole, hole});
    position = next;
  }
  request.done(0);
}

Result<void> RawNode::refresh_size() {
  auto taken = take_size(*file_);
  if (!taken) return std::move(taken).error().context("raw");
  return {};
}

Result<void> RawNode::resize(Bytes size) {
  const std::string what = "raw: resize " + path();
  if (info_.read_only) return Error(ErrorKind::kPermission, what + ": opened read-only", EROFS);
  if (file_->facts.block_device)
    return Error(ErrorKind::kUnsupported, what + ": a block device has its size from elsewhere");
  if (size.v == 0 || size.v % kSectorSize != 0)
    return Error(ErrorKind::kInvalid,
                 what + ": " + std::to_string(size.v) + " bytes is no whole number of sectors");
  if (ftruncate(file_->fd.get(), static_cast<off_t>(size.v)) != 0)
    return Error::from_errno(errno, what);
  return refresh_size();
}

Result<void> RawNode::reopen(bool read_only) {
  auto opened = RawFile::open(path(), read_only, options_.direct, options_.align);
  if (!opened) return std::move(opened).error().context("raw: reopen");
  std::unique_ptr<RawFile> file = std::move(opened).value();
  if (!file->same_as(*file_))
    return Error(ErrorKind::kInvalid, "raw: reopen " + path() + ": it is another file by now");
  // Locks belong to descriptors: the old one's would be in the way of the new one's.
  if (options_.locking) unlock_image(file_->fd.get());
  Result<void> taken = take_locks(*file);
  if (taken) taken = take_size(*file);
  if (!taken) {
    if (options_.locking) {
      unlock_image(file->fd.get());
      VBDKIT_TRY(take_locks(*file_));
    }
    return std::move(taken).error().context("raw: reopen");
  }
  describe(*file);
  file->node = this;
  std::swap(file, file_);
  if (file->in_flight > 0) retired_.push_back(std::move(file));
  return {};
}

namespace {

constexpr const char* kKeys[] = {"align", "direct", "discard", "locking"};

Result<NodePtr> open_raw(const NodeSpec& spec, NodePtr, const OpenContext& context) {
  VBDKIT_ASSIGN(const RawOptions options, read_options(spec));
  auto node = std::make_unique<RawNode>(spec, options, context);
  auto opened = node->open(context.options.read_only);
  if (!opened) return std::move(opened).error().context("raw");
  return NodePtr(std::move(node));
}

}  // namespace

DriverEntry raw_driver() {
  return {"raw", "a file or block device as it is", false, true, kKeys, open_raw};
}

}  // namespace vbdkit::drivers
