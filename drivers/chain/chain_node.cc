// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/chain/chain_node.h"

#include <algorithm>
#include <cerrno>

#include "drivers/iov.h"
#include "drivers/stored_image.h"

namespace vbdkit::drivers {
namespace {

// A status request may cover terabytes; it is answered in part after building so many windows.
constexpr unsigned kStatusBuilds = 64;

uint64_t window_of(const Layer& leaf) {
  return std::clamp(leaf.info().map_window, kMinWindow, kMaxWindow);
}

// Appends the pieces of [skip, skip + length) to an empty vector.
void slice(const iovec* iov, uint64_t skip, uint64_t length, std::vector<iovec>& to) {
  for_each_piece(iov, skip, length, [&](char* base, size_t n) { to.push_back({base, n}); });
}

}  // namespace

// One request on its way through the chain. It waits for `pending` things: its children, a window,
// and its own advancing.
struct ChainNode::Operation {
  Request* request = nullptr;
  StatusRequest* status = nullptr;
  uint64_t cursor = 0;  // disk offset; what lies before has been issued
  uint64_t end = 0;
  uint32_t pending = 0;
  unsigned builds = 0;
  int error = 0;
  bool below = false;  // reads what lies beneath the leaf
  bool flushed = false;
  std::unique_ptr<Window> below_window;  // without the leaf; never in the map
  std::unique_ptr<WindowBuilder> below_builder;
  Operation* next = nullptr;
};

struct ChainNode::Child {
  Request request;  // first: `done` gets the rest from it
  ChainNode* chain = nullptr;
  Operation* op = nullptr;
  std::vector<iovec> iov;
  Child* next = nullptr;
};

struct ChainNode::Piece {
  uint64_t offset = 0;  // on the disk
  uint64_t length = 0;
  Source source;
  bool to_leaf = false;

  bool continued_by(const Piece& o) const {
    return length != 0 && to_leaf == o.to_leaf && (to_leaf || source == o.source);
  }
};

ChainNode::ChainNode(Chain chain, ChainOptions options)
    : chain_(std::move(chain)),
      options_(std::move(options)),
      writable_(!options_.read_only),
      map_(window_of(chain_.leaf()), options_.map_memory) {
  chain_.paths.resize(chain_.layers.size());
  chain_.stamps.resize(chain_.layers.size());
  chain_.ids.assign(chain_.layers.size(), kNewId);
  give_ids();
  chain_.leaf().set_chain(*this, *this);
  describe();
}

ChainNode::~ChainNode() = default;

// From the base up, so that a leaf that is put in front changes nothing beneath it.
void ChainNode::give_ids() {
  const size_t fresh =
      static_cast<size_t>(std::count(chain_.ids.begin(), chain_.ids.end(), kNewId));
  if (slots_.size() + fresh > kMaxLayers) {
    // After thousands of operations all begins anew.
    map_.clear();
    chain_.ids.assign(chain_.layers.size(), kNewId);
    slots_.clear();
  }
  for (size_t i = chain_.layers.size(); i-- > 0;) {
    uint16_t& id = chain_.ids[i];
    if (id == kNewId) {
      id = static_cast<uint16_t>(slots_.size());
      slots_.emplace_back();
    }
    slots_[id].layer = chain_.layers[i].get();
  }
  leaf_id_ = chain_.ids.front();
}

void ChainNode::renamed(const std::string& path) {
  options_.image.path = path;
  options_.spec = GraphSpec{{options_.image}}.to_string();
  chain_.paths.front() = path;
  chain_.leaf().file().renamed(path);
}

Result<void> ChainNode::readers_gone() {
  chain_.leaf().readers_gone();
  return chain_.leaf().file().readers_gone();
}

Chain ChainNode::exchange(Chain next, ChainOptions options) {
  const Layer* const leaf = &chain_.leaf();
  for (size_t i = 0; i < next.layers.size(); ++i) {
    if (next.ids[i] == kNewId) continue;
    const auto at = std::find(chain_.ids.begin(), chain_.ids.end(), next.ids[i]);
    const auto old = static_cast<size_t>(at - chain_.ids.begin());
    if (next.layers[i] == nullptr)
      next.layers[i] = std::move(chain_.layers[old]);
    else
      slots_[next.ids[i]].filtered.reset();  // it stands over the old one's file
  }
  std::swap(chain_, next);
  for (const uint16_t id : next.ids)
    if (std::find(chain_.ids.begin(), chain_.ids.end(), id) == chain_.ids.end()) slots_[id] = {};
  give_ids();
  options_ = std::move(options);
  if (&chain_.leaf() != leaf) chain_.leaf().set_chain(*this, *this);
  describe();
  return next;
}

namespace {

// Stands for a node that another one owns.
class Borrowed final : public Node {
 public:
  explicit Borrowed(Node& node) : node_(node) {}
  std::string_view driver() const override { return node_.driver(); }
  std::string spec() const override { return node_.spec(); }
  const NodeInfo& info() const override { return node_.info(); }
  void submit(Request& request) override { node_.submit(request); }
  void block_status(StatusRequest& request) override { node_.block_status(request); }
  Result<void> refresh_size() override { return node_.refresh_size(); }
  Result<void> resize(Bytes size) override { return node_.resize(size); }
  Result<void> reopen(bool read_only) override { return node_.reopen(read_only); }
  std::string identity() const override { return node_.identity(); }

 private:
  Node& node_;
};

}  // namespace

bool ChainNode::filter_parents(const std::function<NodePtr(NodePtr)>& filter) {
  for (size_t i = 1; i < chain_.layers.size(); ++i) {
    const uint16_t id = chain_.ids[i];
    NodePtr beneath = std::move(slots_[id].filtered);
    if (!beneath) beneath = std::make_unique<Borrowed>(file_of(id));
    slots_[id].filtered = filter(std::move(beneath));
  }
  return has_parent();
}

void ChainNode::list_images(std::vector<StoredImage>& images) const {
  for (size_t i = 0; i < chain_.layers.size(); ++i) {
    Layer& layer = *chain_.layers[i];
    const size_t first = images.size();
    layer.file().list_images(images);
    if (images.size() == first) images.push_back({.path = chain_.paths[i], .read_only = i != 0});
    images[first].format = layer.info().format;
    images[first].size = layer.info().size.v;
  }
}

void ChainNode::describe() {
  const LayerInfo& leaf = chain_.leaf().info();
  const NodeInfo& file = chain_.leaf().file().info();
  info_.size = leaf.size;
  info_.request_alignment = std::max<uint32_t>(leaf.alignment, kSectorSize);
  info_.logical_block = info_.request_alignment;
  info_.physical_block = std::max(file.physical_block, info_.logical_block);
  info_.read_only = options_.read_only;
  info_.discard_granularity =
      options_.read_only || !file.can_discard ? 0 : leaf.discard_granularity;
  info_.can_discard = info_.discard_granularity != 0;
  info_.can_write_zeroes = leaf.can_write_zeroes && !options_.read_only;
  info_.volatile_cache = !options_.read_only;
  info_.rotational = file.rotational;
}

ChainNode::Operation& ChainNode::start(Request& request) {
  Operation* op = idle_operations_;
  if (op == nullptr) {
    operations_.push_back(std::make_unique<Operation>());
    op = operations_.back().get();
  } else {
    idle_operations_ = op->next;
  }
  op->request = &request;
  op->status = nullptr;
  op->cursor = request.offset;
  op->end = request.offset + request.length;
  op->pending = 1;
  op->builds = 0;
  op->error = 0;
  op->below = false;
  op->flushed = false;
  op->next = nullptr;
  ++in_flight_;
  return *op;
}

void ChainNode::submit(Request& request) {
  if (request.op != Op::kRead && request.op != Op::kFlush && options_.read_only) {
    request.done(request, EROFS);
    return;
  }
  if (!range_inside(request.offset, request.length, info_.size.v) ||
      (request.offset | request.length) % info_.request_alignment != 0) {
    request.done(request, EINVAL);
    return;
  }
  Operation& op = start(request);
  switch (request.op) {
    case Op::kRead:
    case Op::kWrite:
      advance(op);
      break;
    case Op::kFlush:
      op.flushed = true;
      issue_to_leaf(op, &Layer::flush);
      break;
    case Op::kDiscard:
      issue_to_leaf(op, &Layer::discard);
      break;
    case Op::kWriteZeroes:
      issue_to_leaf(op, &Layer::write_zeroes);
      break;
    case Op::kCopy:
      op.error = EOPNOTSUPP;
      break;
  }
  release(op);
}

void ChainNode::read_below(Request& request) {
  Operation& op = start(request);
  op.below = true;
  advance(op);
  release(op);
}

// The run at `offset`. False where a window is missing; the operation then waits for it.
bool ChainNode::find(Operation& op, uint64_t offset, WindowMap::Run& run) {
  const uint64_t index = map_.index_of(offset);
  if (op.below_window != nullptr && op.below_window->index() == index) {
    const auto sector = static_cast<uint32_t>(offset % map_.window() / kSectorSize);
    const Window::Run found = op.below_window->find(sector, map_.sectors());
    run = {uint64_t{found.end - sector} * kSectorSize, found.source};
    return true;
  }
  auto found = map_.find(offset);
  if (found && has_gone(found->source)) [[unlikely]] {
    map_.erase(index);
    found.reset();
  }
  if (!found) {
    // A write needs no map: the leaf knows its own layout, and whether parents have the range makes
    // no difference.
    if (op.status == nullptr && op.request->op == Op::kWrite) {
      run = {map_.window() - offset % map_.window(), Source::nowhere()};
      return true;
    }
    await_window(op, index);
    return false;
  }
  run = *found;
  if (op.below && run.source.layer() == leaf_id_) {
    await_window_below(op, index);
    return false;
  }
  return true;
}

bool ChainNode::needs_leaf(const Operation& op, const Source& source) const {
  return op.request->op == Op::kWrite &&
         (source.layer() != leaf_id_ || source.kind() != Segment::Kind::kData);
}

void ChainNode::advance(Operation& op) {
  if (op.status != nullptr) {
    while (op.cursor < op.end && advance_status(op)) {
    }
    return;
  }
  Piece piece;
  while (op.cursor < op.end) {
    // Nothing may be issued between looking at the map and using what it said: a completion inside
    // submit() can change it. `run` is a copy.
    WindowMap::Run run;
    const uint64_t offset = op.cursor;
    if (!find(op, offset, run)) break;
    op.cursor += std::min(run.length, op.end - offset);
    const Piece next{offset, op.cursor - offset, run.source, needs_leaf(op, run.source)};
    if (piece.continued_by(next)) {
      piece.length += next.length;
      continue;
    }
    if (piece.length != 0) issue(op, piece);
    piece = next;
  }
  if (piece.length != 0) issue(op, piece);
}

ChainNode::Child& ChainNode::make_child(Operation& op, Op kind, uint64_t offset, uint64_t length) {
  Child* child = idle_children_;
  if (child == nullptr) {
    children_.push_back(std::make_unique<Child>());
    child = children_.back().get();
  } else {
    idle_children_ = child->next;
  }
  child->chain = this;
  child->op = &op;
  Request& request = child->request;
  request.op = kind;
  request.flags = op.request->flags & static_cast<uint8_t>(~kFua);
  request.offset = offset;
  request.length = length;
  request.iov = nullptr;
  request.iov_count = 0;
  request.done = [](Request& r, int error) {
    Child& c = *reinterpret_cast<Child*>(&r);
    Operation& parent = *c.op;
    ChainNode& chain = *c.chain;
    c.next = chain.idle_children_;
    chain.idle_children_ = &c;
    if (error != 0 && parent.error == 0) parent.error = error;
    chain.release(parent);
  };
  ++op.pending;
  return *child;
}

void ChainNode::issue_to_leaf(Operation& op, void (Layer::*method)(Request&)) {
  const Request& request = *op.request;
  Child& child = make_child(op, op.flushed ? Op::kFlush : request.op,
                            op.flushed ? 0 : request.offset, op.flushed ? 0 : request.length);
  (chain_.leaf().*method)(child.request);
}

void ChainNode::issue(Operation& op, const Piece& piece) {
  const Request& request = *op.request;
  const uint64_t skip = piece.offset - request.offset;
  const Source& source = piece.source;
  if (!piece.to_leaf && source.kind() == Segment::Kind::kZero) {
    zero_iov(request.iov, skip, piece.length);
    return;
  }
  const bool direct = !piece.to_leaf && source.kind() == Segment::Kind::kData;
  Child& child = make_child(op, request.op,
                            direct ? source.file_offset(piece.offset) : piece.offset, piece.length);
  if (piece.length == request.length) {
    child.request.iov = request.iov;
    child.request.iov_count = request.iov_count;
  } else {
    child.iov.clear();
    slice(request.iov, skip, piece.length, child.iov);
    child.request.iov = child.iov.data();
    child.request.iov_count = static_cast<uint32_t>(child.iov.size());
  }
  if (piece.to_leaf)
    chain_.leaf().write(child.request);
  else if (direct)
    file_of(source.layer()).submit(child.request);
  else
    slots_[source.layer()].layer->read_special(child.request);
}

void ChainNode::release(Operation& op) {
  if (--op.pending > 0) return;
  const bool fua = op.status == nullptr && (op.request->flags & kFua) != 0;
  if (fua && op.error == 0 && !op.flushed && op.request->op != Op::kRead) {
    op.flushed = true;
    op.pending = 1;
    issue_to_leaf(op, &Layer::flush);
    release(op);
    return;
  }
  finish(op);
}

void ChainNode::finish(Operation& op) {
  Request* const request = op.request;
  StatusRequest* const status = op.status;
  const int error = op.error;
  op.below_window.reset();
  op.next = idle_operations_;
  idle_operations_ = &op;
  --in_flight_;
  if (status != nullptr)
    status->done(error);
  else
    request->done(*request, error);
}

void ChainNode::block_status(StatusRequest& request) {
  if (request.length == 0 || !range_inside(request.offset, request.length, info_.size.v)) {
    request.done(EINVAL);
    return;
  }
  Request none;
  none.offset = request.offset;
  none.length = request.length;
  Operation& op = start(none);
  op.request = nullptr;
  op.status = &request;
  advance(op);
  release(op);
}

// False where the operation ends here, or waits for a window.
bool ChainNode::advance_status(Operation& op) {
  std::vector<Extent>& extents = op.status->extents;
  if (!extents.empty() && op.builds >= kStatusBuilds) return false;
  WindowMap::Run run;
  if (!find(op, op.cursor, run)) return false;
  Extent extent;
  extent.length = std::min(run.length, op.end - op.cursor);
  extent.zero = run.source.kind() == Segment::Kind::kZero;
  extent.allocated = run.source.layer() != kNoLayer;
  extent.own = run.source.layer() == leaf_id_;
  const auto near = chain_.ids.begin() +
                    static_cast<ptrdiff_t>(std::min(op.status->near_images, chain_.ids.size()));
  extent.near = std::find(chain_.ids.begin(), near, run.source.layer()) != near;
  if (!extents.empty() && extents.back().zero == extent.zero &&
      extents.back().allocated == extent.allocated && extents.back().own == extent.own &&
      extents.back().near == extent.near) {
    extents.back().length += extent.length;
  } else {
    if (extents.size() >= std::max<size_t>(op.status->max_extents, 1)) return false;
    extents.push_back(extent);
  }
  op.cursor += extent.length;
  return true;
}

void ChainNode::await_window(Operation& op, uint64_t index) {
  ++op.pending;
  ++op.builds;
  const auto [it, fresh] = builds_.try_emplace(index);
  Build& build = it->second;
  op.next = build.waiters;
  build.waiters = &op;
  if (fresh) run_builder(index, build);
}

void ChainNode::run_builder(uint64_t index, Build& build) {
  build.builder =
      std::make_unique<WindowBuilder>(chain_.layers, 0, map_.window(), index, chain_.ids);
  build.builder->start([this, index](int error) { window_built(index, error); });
}

void ChainNode::window_built(uint64_t index, int error) {
  const auto it = builds_.find(index);
  // Called by the builder, which does nothing after this; it dies when this returns.
  const std::unique_ptr<WindowBuilder> builder = std::move(it->second.builder);
  if (error == 0 && builder->stale()) {
    run_builder(index, it->second);
    return;
  }
  Operation* const waiters = it->second.waiters;
  builds_.erase(it);
  if (error == 0) map_.insert(builder->take());
  resume(waiters, error);
}

// What lies beneath a place that the leaf has: such a window is built for one operation.
void ChainNode::await_window_below(Operation& op, uint64_t index) {
  ++op.pending;
  op.below_builder =
      std::make_unique<WindowBuilder>(chain_.layers, 1, map_.window(), index, chain_.ids);
  op.below_builder->start([this, &op](int error) {
    const std::unique_ptr<WindowBuilder> builder = std::move(op.below_builder);
    if (error == 0) op.below_window = std::make_unique<Window>(builder->take());
    op.next = nullptr;
    resume(&op, error);
  });
}

void ChainNode::resume(Operation* waiters, int error) {
  while (waiters != nullptr) {
    Operation& op = *waiters;
    waiters = op.next;
    if (error != 0 && op.error == 0) op.error = error;
    if (op.error == 0) advance(op);
    release(op);
  }
}

void ChainNode::remapped(uint64_t offset, const Segment& segment) {
  const uint64_t first = map_.index_of(offset);
  const uint64_t last = map_.index_of(offset + segment.length - 1);
  std::optional<Source> source;
  if (segment.kind == Segment::Kind::kData)
    source = Source::data(leaf_id_, offset, segment.file_offset);
  else if (segment.kind != Segment::Kind::kAbsent)
    source = Source::of_kind(segment.kind, leaf_id_);
  else if (!has_parent())
    source = Source::nowhere();
  if (source) {
    map_.assign(offset, segment.length, *source);
  } else {
    for (uint64_t index = first; index <= last; ++index) map_.erase(index);
  }
  if (builds_.empty()) return;
  for (uint64_t index = first; index <= last; ++index) {
    const auto it = builds_.find(index);
    if (it == builds_.end() || it->second.builder == nullptr) continue;
    if (source)
      it->second.builder->remapped(offset, segment.length, *source);
    else
      it->second.builder->invalidate();
  }
}

Result<void> ChainNode::refresh_size() { return {}; }

Result<void> ChainNode::resize(Bytes size) {
  const std::string what = options_.driver + ": resize " + chain_.paths.front();
  if (options_.read_only) return Error(ErrorKind::kPermission, what + ": opened read-only", EROFS);
  if (in_flight_ > 0)
    return Error(ErrorKind::kBusy, what + ": requests are in flight; pause the disk first", EBUSY);
  auto done = chain_.leaf().resize(size);
  if (!done) return std::move(done).error().context(what);
  // What lay beyond the old end was known as zeroes.
  map_.clear();
  describe();
  return {};
}

// A leaf opened for writing keeps its access to the file also while the node is read-only: it may
// have metadata left to write.
Result<void> ChainNode::reopen(bool read_only) {
  if (!read_only && !writable_)
    return Error(ErrorKind::kUnsupported,
                 options_.driver + ": reopen " + chain_.paths.front() +
                     ": it was opened read-only; close it and open it anew");
  VBDKIT_TRY(chain_.leaf().file().reopen(!writable_));
  options_.read_only = read_only;
  describe();
  return {};
}

}  // namespace vbdkit::drivers
