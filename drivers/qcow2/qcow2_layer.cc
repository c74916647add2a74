// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/qcow2_layer.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "drivers/iov.h"
#include "drivers/qcow2/check.h"
#include "drivers/qcow2/rebase.h"

namespace vbdkit::drivers::qcow2 {
namespace {

using Kind = ClusterState::Kind;

// L2 slices and refcount slices. A parent's are read to build windows of the chain's map, in order.
constexpr uint64_t kLeafCache = uint64_t{4} << 20;  // bytes
constexpr uint64_t kParentCache = uint64_t{32} << 10;

// A parent's L1 table is kept in memory up to this size (4 TiB of disk, at the usual cluster size),
// so that a chain of images cannot take more than a few megabytes by what they claim.
constexpr uint64_t kMostParentL1 = uint64_t{64} << 10;  // bytes

// What is rebuilt while an image is opened: a full disk of 1 TiB, at the usual cluster size. More
// is for those who have the time to wait.
constexpr WalkLimits kRebuildLimits{.metadata = uint64_t{144} << 20, .memory = uint64_t{96} << 20};

std::string num(uint64_t v) { return std::to_string(v); }

}  // namespace

Result<std::unique_ptr<Layer>> Qcow2Layer::open(LayerSource source, const LayerContext& context) {
  const auto mode = context.read_only ? ImageFile::Mode::kRead : ImageFile::Mode::kWrite;
  VBDKIT_ASSIGN(MetadataFile file, MetadataFile::open(source.path, mode));
  VBDKIT_ASSIGN(Header header, file.read_header());
  if (!context.read_only)
    VBDKIT_TRY(prepare_for_writing(file, header, *source.file, context.log));
  else if (header.corrupt())
    context.log.warning("qcow2: %s: the image is marked corrupt; reading what there is",
                        source.path.c_str());
  std::vector<uint64_t> l1;
  if (!context.read_only || uint64_t{header.l1_entries} * 8 <= kMostParentL1) {
    VBDKIT_ASSIGN(l1, file.read_table(header.l1_offset, header.l1_entries));
  }
  std::vector<uint64_t> refcounts;
  if (!context.read_only) {
    const uint64_t entries = header.refcount_table_bytes() / 8;
    VBDKIT_ASSIGN(refcounts, file.read_table(header.refcount_table_offset, entries));
    for (const uint64_t block : refcounts)
      if (block != 0 && (header.geometry.in_cluster(block) != 0 ||
                         !range_inside(block, header.geometry.cluster_size(), file.size())))
        return Error(ErrorKind::kCorrupt,
                     source.path + ": a refcount block at " + num(block) + " is outside the file");
  }
  std::unique_ptr<Qcow2Layer> layer(new Qcow2Layer(std::move(header), std::move(file),
                                                   std::move(source), context, std::move(l1),
                                                   std::move(refcounts)));
  if (!context.read_only)
    VBDKIT_TRY(layer->space_.start(layer->refcounts_.table(), layer->tables_.l1()));
  VBDKIT_TRY(layer->find_parent());
  return std::unique_ptr<Layer>(std::move(layer));
}

Result<void> Qcow2Layer::prepare_for_writing(MetadataFile& file, Header& header, Node& node,
                                             const Logger& log) {
  if (header.corrupt())
    return Error(ErrorKind::kCorrupt,
                 file.path() +
                     ": the image is marked corrupt; check and repair it, or open it "
                     "read-only");
  // Clusters are whole from here on; a file may end inside its last one.
  const uint64_t aligned = align_up(file.size(), header.geometry.cluster_size());
  if (!file.block_device() && aligned != file.size()) {
    VBDKIT_TRY(node.resize(Bytes{aligned}));
    VBDKIT_TRY(file.refresh());
    // The node may have given up direct I/O because of the odd size.
    VBDKIT_TRY(node.reopen(false));
  }
  if (header.dirty()) {
    log.notice("qcow2: %s: was not closed properly; rebuilding its refcounts", file.path().c_str());
    auto checked = check_image(file, Repair::kAll, kRebuildLimits);
    if (!checked)
      return std::move(checked).error().context(
          file.path() + ": was not closed properly, and must be checked before it is opened");
    const CheckResult& result = *checked;
    if (result.corruptions != 0)
      return Error(ErrorKind::kCorrupt,
                   file.path() + ": " + num(result.corruptions) +
                       " errors that cannot be repaired: " +
                       (result.messages.empty() ? "" : result.messages.front()));
    VBDKIT_ASSIGN(header, file.read_header());
    VBDKIT_TRY(node.refresh_size());
  }
  if (header.autoclear != 0) {
    // They vouch for data that does not follow our writes.
    log.notice("qcow2: %s: its bitmaps and similar data go stale with the first write",
               file.path().c_str());
    const std::array<uint8_t, 8> none{};
    VBDKIT_TRY(file.write(kAutoclearField, none));
    VBDKIT_TRY(file.sync());
    header.autoclear = 0;
  }
  return {};
}

Qcow2Layer::Qcow2Layer(Header header, MetadataFile metadata, LayerSource source,
                       const LayerContext& context, std::vector<uint64_t> l1,
                       std::vector<uint64_t> refcount_table)
    : image_(std::move(header), std::move(metadata), std::move(source.file), context.log,
             context.read_only),
      cache_(context.read_only ? kParentCache : kLeafCache),
      locks_(image_.ready),
      space_(image_, cache_, context.readers),
      tables_(image_, cache_, space_, std::move(l1)),
      refcounts_(image_, cache_, space_, std::move(refcount_table)),
      flusher_(image_, tables_, space_, refcounts_),
      compressed_(image_),
      writer_(image_, tables_, space_, compressed_) {
  info_.size = Bytes{align_down(image_.header.size, kSectorSize)};
  info_.map_window = image_.g.slice_span();
  info_.cluster = static_cast<uint32_t>(image_.g.cluster_size());
  info_.format = "qcow2";
  info_.discard_granularity = static_cast<uint32_t>(image_.g.unit_size());
  info_.can_write_zeroes = true;
  if (!image_.file->info().volatile_cache) image_.blocking.ignore_sync();
}

Qcow2Layer::~Qcow2Layer() {
  if (!image_.read_only) {
    const int error = close();
    if (error != 0)
      image_.log.error("qcow2: %s: closing it: %s", image_.path().c_str(), strerror(error));
  }
  cache_.drop(image_);
}

template <typename MakeTask>
int Qcow2Layer::run_blocking(MakeTask make_task) {
  if (const auto looked = image_.blocking.refresh(); !looked) return looked.error().sys_errno();
  NodePtr node = std::exchange(image_.file, make_blocking_node(image_.blocking));
  int result = EIO;
  [](MakeTask make, int& error) -> Detached { error = co_await make(); }(make_task, result);
  image_.file = std::move(node);
  return result;
}

// All that is left in memory; nothing runs the reactor any more.
int Qcow2Layer::close() {
  if (image_.corrupt) return 0;
  return run_blocking([this]() -> Task<int> {
    const int error = co_await flusher_.close();
    // What the file grew by and nobody took.
    if (error != 0 || !space_.grown()) co_return error;
    const auto cut = image_.file->resize(Bytes{space_.end_of_use() << image_.g.cluster_bits});
    co_return cut ? 0 : cut.error().sys_errno();
  });
}

Result<void> Qcow2Layer::settle() {
  if (image_.read_only || image_.corrupt) return {};
  const int error = run_blocking([this]() { return flusher_.settle(); });
  if (error != 0) return Error::from_errno(error, "qcow2: " + image_.path() + ": writing it");
  return {};
}

Result<void> Qcow2Layer::reload_parent() {
  VBDKIT_ASSIGN(const Header header, image_.blocking.read_header());
  VBDKIT_ASSIGN(auto parent, backing_reference(image_.path(), header));
  parent_ = std::move(parent);
  image_.header.backing_file = header.backing_file;
  image_.header.backing_format = header.backing_format;
  image_.header.extensions = header.extensions;
  return {};
}

Result<void> Qcow2Layer::find_parent() {
  VBDKIT_ASSIGN(parent_, backing_reference(image_.path(), image_.header));
  return {};
}

void Qcow2Layer::set_chain(MapListener& listener, ParentReader& below) {
  below_ = &below;
  writer_.set_chain(listener, below);
}

void Qcow2Layer::map(MapRequest& request) {
  ReadyQueue::Scope scope(image_.ready);
  run_map(request);
}

Detached Qcow2Layer::run_map(MapRequest& request) {
  const int error = co_await map_range(request);
  const auto done = std::move(request.done);
  done(error);
}

Task<int> Qcow2Layer::map_range(MapRequest& request) {
  const uint64_t span = image_.g.slice_span();
  const uint64_t end = request.offset + request.length;
  const size_t before = request.segments.size();
  for (bool again = true; again;) {
    again = false;
    request.segments.resize(before);
    const uint64_t changes = tables_.changes();
    for (uint64_t at = request.offset; at < end && !again;) {
      const uint64_t to = std::min(end, align_down(at, span) + span);
      const SliceCache::Loaded loaded = co_await tables_.slice(at);
      if (loaded.error != 0) co_return loaded.error;
      // A change while it was read may be one of those that were listed already.
      again = tables_.changes() != changes && at != request.offset;
      const int error = map_slice(loaded.slice, at, to, request.segments);
      if (error != 0) co_return error;
      at = to;
    }
  }
  co_return 0;
}

int Qcow2Layer::add_segment(Segment segment, std::vector<Segment>& segments) const {
  if (segment.kind == Segment::Kind::kData) {
    const uint64_t size = image_.size_for(segment.file_offset + segment.length);
    if (segment.file_offset >= size) return EIO;
    // The file of a parent may end inside its last cluster: zeroes follow.
    const uint64_t inside = align_down(size - segment.file_offset, kSectorSize);
    if (inside < segment.length) {
      const uint64_t rest = segment.length - inside;
      segment.length = inside;
      if (inside > 0) add_segment(segment, segments);
      return add_segment({rest, 0, Segment::Kind::kZero}, segments);
    }
  }
  if (!segments.empty()) {
    Segment& last = segments.back();
    if (last.kind == segment.kind && (segment.kind != Segment::Kind::kData ||
                                      last.file_offset + last.length == segment.file_offset)) {
      last.length += segment.length;
      return 0;
    }
  }
  segments.push_back(segment);
  return 0;
}

int Qcow2Layer::map_slice(const SliceRef& slice, uint64_t from, uint64_t to,
                          std::vector<Segment>& segments) {
  const Geometry& g = image_.g;
  if (!slice) return add_segment({to - from, 0, Segment::Kind::kAbsent}, segments);
  int error = 0;
  while (from < to && error == 0) {
    const uint64_t start = align_down(from, g.cluster_size());
    const uint64_t end = std::min(to, start + g.cluster_size());
    const ClusterState state = g.decode_at(tables_.entry(slice, from));
    if (state.kind == Kind::kInvalid || (state.allocated != 0 && state.host < g.cluster_size()))
      return image_.mark_corrupt("the L2 entry of the cluster at " + num(start) + " is invalid");
    const bool shared = state.allocated != 0 && !state.copied && !image_.read_only;
    if (state.kind == Kind::kCompressed) {
      error = add_segment({end - from, 0, Segment::Kind::kCompressed}, segments);
    } else {
      for_each_segment(g, state, start, from, end, [&](uint64_t, Segment segment) {
        if (shared && segment.kind == Segment::Kind::kData)
          segment = {segment.length, 0, Segment::Kind::kCompressed};
        if (error == 0) error = add_segment(segment, segments);
      });
    }
    if (error != 0)
      return image_.mark_corrupt("the data of the cluster at " + num(start) +
                                 " is beyond the end of the file");
    from = end;
  }
  return 0;
}

void Qcow2Layer::read_special(Request& request) {
  ReadyQueue::Scope scope(image_.ready);
  run_read(request);
}

Detached Qcow2Layer::run_read(Request& request) {
  int error = 0;
  {
    const uint64_t end = request.offset + request.length;
    // Against writes elsewhere in the same cluster, which may give its place to somebody else.
    ClusterLocks::Lock lock(locks_, cluster(request.offset), cluster(end - 1), true);
    co_await lock.acquire();
    for (uint64_t at = request.offset; at < end && error == 0;) {
      const uint64_t to =
          std::min(end, align_down(at, image_.g.cluster_size()) + image_.g.cluster_size());
      error = co_await read_cluster(request, at, to);
      at = to;
    }
  }
  request.done(request, error);
}

Task<int> Qcow2Layer::read_cluster(const Request& request, uint64_t from, uint64_t to) {
  const Geometry& g = image_.g;
  SliceCache::Loaded loaded = co_await tables_.slice(from);
  if (loaded.error != 0) co_return loaded.error;
  if (!loaded.slice) co_return EIO;  // map() did not say so
  const ClusterState state = g.decode_at(tables_.entry(loaded.slice, from));
  loaded.slice = {};  // its table may be replaced meanwhile
  const uint64_t skip = from - request.offset;
  if (state.kind == Kind::kInvalid) co_return EIO;
  if (state.kind == Kind::kCompressed) {
    const CompressedReader::Content content = co_await compressed_.read(state);
    if (content.error != 0) co_return content.error;
    const uint8_t* data = content.cluster->data.data() + g.in_cluster(from);
    copy_to_iov(request.iov, skip, reinterpret_cast<const char*>(data), to - from);
    co_return 0;
  }
  // Shared with an internal snapshot, or rewritten since the chain asked.
  std::vector<std::pair<uint64_t, Segment>> parts;
  for_each_segment(g, state, align_down(from, g.cluster_size()), from, to,
                   [&](uint64_t at, const Segment& s) { parts.emplace_back(at, s); });
  for (const auto& [at, segment] : parts) {
    if (segment.kind != Segment::Kind::kData) {
      zero_iov(request.iov, at - request.offset, segment.length);
      continue;
    }
    std::vector<iovec> iov;
    for_each_piece(request.iov, at - request.offset, segment.length,
                   [&](char* base, size_t length) {
                     iov.push_back({base, length});
                   });
    const int error = co_await image_.read(segment.file_offset, segment.length, iov);
    if (error != 0) co_return error;
  }
  co_return 0;
}

void Qcow2Layer::write(Request& request) {
  ReadyQueue::Scope scope(image_.ready);
  run_change(request, Change::kWrite);
}

void Qcow2Layer::discard(Request& request) {
  ReadyQueue::Scope scope(image_.ready);
  run_change(request, Change::kDiscard);
}

void Qcow2Layer::write_zeroes(Request& request) {
  ReadyQueue::Scope scope(image_.ready);
  run_change(request, Change::kZero);
}

Detached Qcow2Layer::run_change(Request& request, Change change) {
  int error = image_.corrupt ? EIO : 0;
  if (error == 0 && request.length > 0) {
    const uint64_t end = request.offset + request.length;
    ClusterLocks::Lock lock(locks_, cluster(request.offset), cluster(end - 1), false);
    co_await lock.acquire();
    if (flusher_.needed()) error = co_await flusher_.flush();
    if (error == 0 && change == Change::kWrite)
      error = co_await writer_.write({request.offset, end, request.iov, 0});
    else if (error == 0)
      error = co_await writer_.clear(request.offset, end,
                                     change == Change::kDiscard  ? ClusterWriter::Clear::kDiscard
                                     : request.flags & kMayUnmap ? ClusterWriter::Clear::kUnmap
                                                                 : ClusterWriter::Clear::kZero);
  }
  request.done(request, error);
}

void Qcow2Layer::flush(Request& request) {
  ReadyQueue::Scope scope(image_.ready);
  run_flush(request);
}

Detached Qcow2Layer::run_flush(Request& request) {
  const int error = co_await flusher_.flush();
  request.done(request, error);
}

Result<void> Qcow2Layer::resize(Bytes size) {
  Header& header = image_.header;
  const std::string what = "qcow2: resize " + image_.path() + ": ";
  if (image_.read_only) return Error(ErrorKind::kPermission, what + "opened read-only", EROFS);
  if (size.v % kSectorSize != 0)
    return Error(ErrorKind::kInvalid, what + num(size.v) + " is no whole number of sectors");
  if (header.version < 3 && header.snapshots > 0)
    return Error(ErrorKind::kUnsupported,
                 what + "version 2 does not record the sizes of its internal snapshots");
  const uint64_t entries = image_.g.l1_entries_for(size.v);
  if (size.v > INT64_MAX || entries * 8 > kMaxL1Bytes)
    return Error(ErrorKind::kUnsupported, what + num(size.v) + " is too large for its clusters");
  const int error = run_blocking([&]() { return change_size(size.v); });
  VBDKIT_TRY(image_.file->refresh_size());
  if (error != 0) return Error::from_errno(error, what + "writing it");
  return {};
}

Task<int> Qcow2Layer::change_size(uint64_t size) {
  Header& header = image_.header;
  const uint64_t old = header.size;
  int error = 0;
  if (size < old) error = co_await writer_.clear(size, old, ClusterWriter::Clear::kUnmap);
  if (error != 0) co_return error;
  tables_.grow_l1(image_.g.l1_entries_for(size));
  header.size = size;
  info_.size = Bytes{size};
  flusher_.header_changed();
  // New space is zero, whatever a larger parent holds there.
  const uint64_t shown = std::min(size, below_ != nullptr ? below_->size_below() : 0);
  if (shown > old) error = co_await writer_.clear(old, shown, ClusterWriter::Clear::kUnmap);
  if (error == 0) error = co_await flusher_.flush();
  co_return error;
}

}  // namespace vbdkit::drivers::qcow2
