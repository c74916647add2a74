// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/chain/live_chain.h"

#include <algorithm>

#include "drivers/chain/open_chain.h"
#include "drivers/image_format.h"

namespace vbdkit::drivers {
namespace {

Error failed(const std::string& path, std::string why) {
  return Error(ErrorKind::kInvalid, "snapshot: " + path + ": " + std::move(why));
}

// The new leaf must read as the present one does.
Result<void> check_leaf(const Layer& leaf, const NewLeaf& what, const Layer& former) {
  const std::string& path = what.image.path;
  const ParentReference* const parent = leaf.parent();
  if (parent == nullptr) return failed(path, "it has no parent");
  if (!same_file(parent->path, what.former) || parent->format != former.info().format)
    return failed(path, "its parent is " + parent->path + ", not " + what.former);
  if (!parent->uuid.empty() && parent->uuid != former.info().uuid)
    return failed(path, "it was made on an image of UUID " + parent->uuid);
  if (leaf.info().size != former.info().size)
    return failed(path, "its disk has " + std::to_string(leaf.info().size.v) +
                            " bytes, that beneath it " + std::to_string(former.info().size.v));
  if (leaf.info().alignment > std::max<uint64_t>(former.info().alignment, kSectorSize))
    return failed(path, "it needs requests of " + std::to_string(leaf.info().alignment) + " bytes");
  return {};
}

// The present chain with nothing in it, one layer longer by `more` at the front.
Chain outline(const Chain& chain, size_t more) {
  Chain next;
  next.layers.resize(more + chain.layers.size());
  next.paths.assign(more, {});
  next.stamps.assign(more, {});
  next.ids.assign(more, ChainNode::kNewId);
  next.paths.insert(next.paths.end(), chain.paths.begin(), chain.paths.end());
  next.stamps.insert(next.stamps.end(), chain.stamps.begin(), chain.stamps.end());
  next.ids.insert(next.ids.end(), chain.ids.begin(), chain.ids.end());
  return next;
}

}  // namespace

// The new leaf first: somebody may have found it under the image's name, and now it is locked while
// what it stands on is still nobody's to read.
Result<void> NewFront::open_both(const OpenContext& context) {
  const Chain& present = node_->chain();
  const ChainOptions& options = node_->options();
  OpenContext writing = context;
  writing.options.read_only = false;
  VBDKIT_ASSIGN(next_.layers[0],
                open_layer(leaf_.image.path, leaf_.image.driver, leaf_.image, writing));
  OpenContext reading = context;
  reading.options.read_only = true;
  reading.options.child = leaf_.image.path;
  reading.options.lock_later = true;
  VBDKIT_ASSIGN(next_.stamps[1], FileStamp::of(leaf_.former));
  VBDKIT_ASSIGN(next_.layers[1],
                open_layer(leaf_.former, present.leaf().info().format, options.image, reading));
  if (next_.stamps[1].identity != present.stamps.front().identity)
    return failed(leaf_.former, "is not the image in use");
  VBDKIT_ASSIGN(next_.stamps[0], FileStamp::of(leaf_.image.path));
  next_.paths[0] = leaf_.image.path;
  next_.paths[1] = leaf_.former;
  return check_leaf(*next_.layers[0], leaf_, *next_.layers[1]);
}

Result<NewFront> NewFront::open(ChainNode& node, const NewLeaf& leaf, const OpenContext& context) {
  if (node.info().read_only)
    return Error(ErrorKind::kPermission, "snapshot: the disk is read-only", EROFS);
  if (node.chain().layers.size() >= kMaxChainDepth)
    return Error(ErrorKind::kUnsupported,
                 "snapshot: the chain has " + std::to_string(kMaxChainDepth) + " images already");
  // What is opened on its file next sees all of it.
  VBDKIT_TRY(node.chain().leaf().settle());
  NewFront front(node, leaf);
  front.next_ = outline(node.chain(), 1);
  VBDKIT_TRY(front.open_both(context));
  return front;
}

Result<void> NewFront::apply(const OpenContext& context) {
  Node& present = node_->chain().leaf().file();
  VBDKIT_TRY(present.share(Sharing::kReaders));
  if (auto locked = next_.layers[1]->file().share(Sharing::kAsOpened); !locked) {
    next_ = {};  // its locks go first
    // Where a reader came in between, it stays that way: it still keeps writers away.
    if (const auto taken = present.share(Sharing::kAsOpened); !taken)
      context.log.warning("%s", taken.error().message().c_str());
    return locked;
  }
  ChainOptions options = node_->options();
  options.image = leaf_.image;
  options.driver = leaf_.image.driver;
  options.spec = GraphSpec{{leaf_.image}}.to_string();
  node_->exchange(std::move(next_), std::move(options));
  return {};
}

Result<void> put_in_front(ChainNode& node, const NewLeaf& leaf, const OpenContext& context) {
  VBDKIT_ASSIGN(NewFront front, NewFront::open(node, leaf, context));
  return front.apply(context);
}

ChainRefresh::ChainRefresh(ChainNode& node, const OpenContext& context)
    : node_(node), context_(context), steps_(node.options().driver) {}

ChainRefresh::ChainRefresh(ChainNode& node, const OpenContext& context, ParentReference parent)
    : ChainRefresh(node, context) {
  parent_ = std::move(parent);
}

ChainRefresh::ChainRefresh(ChainNode& node, const OpenContext& context, NoParent)
    : ChainRefresh(node, context) {
  alone_ = true;
}

Result<bool> ChainRefresh::step() {
  auto more = add_next();
  if (more) return more;
  // A leaf that is written cannot have been changed by anybody else.
  const auto changed = steps_.go_back(node_.options().read_only ? 0 : 1, more.error());
  if (!changed) return steps_.failed(std::move(more).error());
  next_.layers.resize(*changed);
  next_.paths.resize(*changed);
  next_.stamps.resize(*changed);
  next_.ids.resize(*changed);
  return true;
}

Result<bool> ChainRefresh::add_next() {
  const Chain& present = node_.chain();
  if (next_.layers.empty()) {
    VBDKIT_TRY(
        add(present.paths.front(), present.leaf().info().format, !node_.options().read_only));
    return true;
  }
  if (alone_) return false;
  const bool relinked = parent_ && next_.layers.size() == 1;
  const ParentReference* const reference = relinked ? &*parent_ : last().parent();
  if (reference == nullptr) return false;
  const ParentReference wanted = *reference;
  if (wanted.format == "raw" && !node_.options().raw_parent)
    return Error(ErrorKind::kPermission,
                 "its parent " + wanted.path + " is a raw file, which raw-parent=on would allow");
  VBDKIT_TRY(steps_.check(wanted));
  VBDKIT_TRY(add(wanted.path, wanted.format, false));
  VBDKIT_TRY(steps_.check_identity(wanted, last().info().uuid));
  return true;
}

Result<void> ChainRefresh::add(const std::string& path, const std::string& format, bool keep) {
  VBDKIT_TRY(steps_.add(path));
  const FileStamp stamp = steps_.stamps().back();
  const Chain& present = node_.chain();
  size_t at = keep ? 0 : present.layers.size();
  // Not the leaf that is written, which has no content of its own that would stay.
  const size_t first = node_.options().read_only ? 0 : 1;
  for (size_t i = first; i < present.layers.size() && !keep; ++i)
    if (present.stamps[i].says_unchanged(stamp) && present.layers[i]->info().format == format &&
        stood_here(i))
      at = i;
  next_.paths.push_back(path);
  if (at < present.layers.size()) {
    next_.layers.push_back(nullptr);
    next_.ids.push_back(present.ids[at]);
    next_.stamps.push_back(keep ? stamp : present.stamps[at]);
    return {};
  }
  OpenContext context = context_;
  context.options.read_only = true;
  if (next_.paths.size() > 1) context.options.child = next_.paths[next_.paths.size() - 2];
  VBDKIT_ASSIGN(auto layer, open_layer(path, format, node_.options().image, context));
  next_.layers.push_back(std::move(layer));
  next_.ids.push_back(ChainNode::kNewId);
  next_.stamps.push_back(stamp);
  ++opened_;
  return {};
}

// Beneath the same image as now. What was merged into it shows where that image is gone; and a
// stamp alone is little to go by where another host has written, with its own clock.
bool ChainRefresh::stood_here(size_t layer) const {
  if (layer == 0 || next_.stamps.empty()) return layer == 0 && next_.stamps.empty();
  return node_.chain().stamps[layer - 1].identity == next_.stamps.back().identity;
}

const Layer& ChainRefresh::last() const {
  if (next_.layers.back() != nullptr) return *next_.layers.back();
  const Chain& present = node_.chain();
  const auto at = std::find(present.ids.begin(), present.ids.end(), next_.ids.back());
  return *present.layers[static_cast<size_t>(at - present.ids.begin())];
}

Result<void> ChainRefresh::relink() {
  Layer& leaf = node_.chain().leaf();
  if (alone_ && leaf.parent() == nullptr) return {};
  const std::string& path = node_.chain().paths.front();
  const ImageFormat* const format = find_image_format(leaf.info().format);
  if (format == nullptr || format->plan_parent == nullptr)
    return Error(ErrorKind::kUnsupported, path + ": images of this format have no parents");
  // The plan is made from what the file says.
  VBDKIT_TRY(leaf.settle());
  VBDKIT_ASSIGN(const auto patches,
                alone_ ? format->plan_alone(path)
                       : format->plan_parent(path, parent_->path, parent_->format));
  VBDKIT_ASSIGN(ImageFile file, ImageFile::open(path, ImageFile::Mode::kWrite));
  VBDKIT_TRY(apply_patches(file, patches));
  return leaf.reload_parent();
}

Result<void> ChainRefresh::apply() {
  if (parent_ || alone_) VBDKIT_TRY(relink());
  if (opened_ == 0 && next_.ids == node_.chain().ids) return {};
  node_.exchange(std::move(next_), node_.options());
  return {};
}

}  // namespace vbdkit::drivers
