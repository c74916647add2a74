// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/jobs/coalesce_job.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "drivers/chain/chain_node.h"
#include "drivers/drivers.h"
#include "drivers/image_forest.h"

namespace vbdkit::drivers {
namespace {

using Phase = CoalesceUsers::Phase;
using Stage = CoalesceJournal::Stage;

// 0 where it does not show that the image was written.
Result<uint64_t> last_change_of(const std::string& path) {
  VBDKIT_ASSIGN(const FileStamp stamp, FileStamp::of(path));
  return stamp.settled ? static_cast<uint64_t>(stamp.modified) : 0;
}

Result<uint64_t> inode_of(const std::string& path) {
  struct stat st {};
  if (::stat(path.c_str(), &st) != 0) return Error::from_errno(errno, "open " + path);
  return uint64_t{st.st_ino};
}

// What the image holds itself, without its parents.
Result<NodePtr> open_alone(const NodeSpec& image, const OpenContext& context) {
  OpenContext reading = context;
  reading.options.read_only = true;
  // It is locked already.
  const NodeSpec file{"raw", image.path, {{"direct", "off"}, {"locking", "off"}}};
  VBDKIT_ASSIGN(NodePtr node, find_driver("raw")->open(file, nullptr, reading));
  const LayerContext layer_context{context.reactor, context.log, true};
  VBDKIT_ASSIGN(
      auto layer,
      find_layer_format(image.driver)->open({image.path, std::move(node)}, layer_context));
  Chain chain;
  chain.layers.push_back(std::move(layer));
  chain.paths.push_back(image.path);
  ChainOptions options;
  options.driver = image.driver;
  options.spec = image.to_string();
  options.read_only = true;
  return NodePtr(std::make_unique<ChainNode>(std::move(chain), std::move(options)));
}

}  // namespace

CoalesceJob::CoalesceJob(NodeSpec image, CoalesceOptions options, const OpenContext& context)
    : image_(std::move(image)),
      options_(std::move(options)),
      context_(context),
      journal_path_(CoalesceJournal::path_for(image_.path)) {}

CoalesceJob::~CoalesceJob() = default;

Result<std::unique_ptr<CoalesceJob>> CoalesceJob::plan(const NodeSpec& image,
                                                       const CoalesceOptions& options,
                                                       const OpenContext& context) {
  std::unique_ptr<CoalesceJob> job(new CoalesceJob(image, options, context));
  VBDKIT_TRY(job->look());
  return job;
}

Result<void> CoalesceJob::look() {
  const ImageFormat* const format = find_image_format(image_.driver);
  if (format == nullptr || format->plan_parent == nullptr)
    return Error(ErrorKind::kInvalid, image_.driver + " images have no parents");
  VBDKIT_ASSIGN(auto journal, CoalesceJournal::load(journal_path_));
  if (journal && journal->stage == Stage::kRemove) {
    const auto inode = inode_of(image_.path);
    // Gone already, or the parent has its name already.
    if (inode ? *inode == journal->parent : inode.error().sys_errno() == ENOENT) {
      journal_ = std::move(*journal);
      only_journal_ = true;
      return {};
    }
  }
  VBDKIT_TRY(lock_the_image());
  ChainFacts chain = inspect_chain(image_.path, image_.driver);
  if (chain.broken) return std::move(*chain.broken);
  if (chain.paths.size() < 2)
    return Error(ErrorKind::kInvalid, image_.path + " has no parent that it could be merged into");
  size_ = chain.images[0].size.v;
  parent_ = {chain.images[1].format, chain.paths[1], {}};
  // What was seen before may have been another host's to change.
  VBDKIT_TRY(claim(live_ ? Phase::kCopy : Phase::kAlone));
  if (inspect_chain(image_.path, image_.driver).paths != chain.paths)
    return Error(ErrorKind::kBusy, image_.path + ": its parents are just being changed", EBUSY);
  // What may be opened is the same as for the image.
  for (const char* key : {"direct", "raw-parent"})
    if (const auto it = image_.options.find(key);
        it != image_.options.end() && (parent_.driver != "raw" || it->first == "direct"))
      parent_.options.insert(*it);
  parent_.options.try_emplace("direct", "off");
  const auto allowed = image_.options.find("raw-parent");
  if (parent_.driver == "raw" && image_.driver == "vhd" &&
      (allowed == image_.options.end() || allowed->second != "on"))
    return Error(ErrorKind::kPermission, image_.path + ": its parent " + parent_.path +
                                             " is a raw file, which raw-parent=on would allow");
  VBDKIT_ASSIGN(const uint64_t image_inode, inode_of(image_.path));
  VBDKIT_ASSIGN(const uint64_t parent_inode, inode_of(parent_.path));
  VBDKIT_ASSIGN(const uint64_t last_change, last_change_of(image_.path));
  const bool others = journal && (journal->image != image_inode || journal->parent != parent_inode);
  const bool written = journal && (journal->modified == 0 || journal->modified != last_change);
  // Nobody has changed over to the parent, and the image covers all that was copied: it can be
  // copied again, or into another parent. An image that others stand on is not written.
  if (journal && ((others && journal->stage == Stage::kCopy) ||
                  (written && !others && journal->children.empty())))
    journal.reset();
  else if (others)
    return Error(ErrorKind::kInvalid, journal_path_ + " is about other files than " + image_.path +
                                          " and its parent " + parent_.path +
                                          "; remove it if you know why");
  if (journal) journal_ = std::move(*journal);
  journal_.image = image_inode;
  journal_.parent = parent_inode;
  journal_.modified = last_change;
  VBDKIT_TRY(look_for_children());
  // A leaf is for nobody else to use meanwhile.
  if (live_ && journal_.children.empty()) {
    live_ = false;
    VBDKIT_TRY(claim(Phase::kAlone));
    VBDKIT_TRY(image_lock_->change(LockMode::kWriter));
  }
  return live_ ? look_for_users() : Result<void>();
}

// Where images stand on it, others may go on reading it, and come and go.
Result<void> CoalesceJob::lock_the_image() {
  live_ = options_.users != nullptr;
  VBDKIT_ASSIGN(ImageLock lock,
                ImageLock::take(image_.path, live_ ? LockMode::kReader : LockMode::kWriter));
  if (live_) VBDKIT_TRY(lock.mark_merging());
  image_lock_.emplace(std::move(lock));
  return {};
}

// Everybody who reads through the parent must be known: the image itself, and those that an
// interrupted job has put there.
Result<void> CoalesceJob::look_for_children() {
  VBDKIT_TRY(find_children());
  for (const CoalesceJournal::Child& child : journal_.children) {
    // It has put images on the image already, and knows that as its parent.
    VBDKIT_ASSIGN(const auto other, CoalesceJournal::load(CoalesceJournal::path_for(child.path)));
    if (other && other->stage != Stage::kCopy && other->parent == journal_.image)
      return merge_unfinished(child.path, image_.path);
  }
  for (const CoalesceJournal::Child& child : journal_.children) {
    // Better now than after the copying.
    CoalesceJournal::Child trial = child;
    VBDKIT_ASSIGN(const bool stands_here, plan_child(trial));
    if (live_ || !stands_here) continue;  // they are locked while they are written
    VBDKIT_ASSIGN(ImageLock lock, ImageLock::take(child.path, LockMode::kWriter));
    child_locks_.push_back(std::move(lock));
  }
  return {};
}

// An interrupted job has put images on the parent, which has all that the image holds and is not
// written any more. What is there now and not in the journal was one of them before a snapshot gave
// it another name, or stands on the parent as rightly.
bool CoalesceJob::put_there_before() const {
  return journal_.stage != Stage::kCopy && !journal_.children.empty();
}

Result<void> CoalesceJob::find_children() {
  std::vector<std::string> directories = options_.directories;
  for (const std::string& directory : {directory_of(image_.path), directory_of(parent_.path)})
    if (std::none_of(directories.begin(), directories.end(),
                     [&](const std::string& d) { return same_file(d, directory); }))
      directories.push_back(directory);
  const auto known = [&](const std::string& path) {
    return std::any_of(journal_.children.begin(), journal_.children.end(),
                       [&](const auto& child) { return same_file(child.path, path); });
  };
  std::vector<std::pair<std::string, std::string>> disguised;  // parent, child
  for (const std::string& directory : directories) {
    VBDKIT_ASSIGN(const ImageForest forest, ImageForest::scan(directory));
    for (const ForestImage* sibling : forest.children_of(parent_.path)) {
      if (same_file(sibling->path, image_.path) || known(sibling->path)) continue;
      if (!put_there_before()) return parent_of_another(parent_.path, sibling->path);
      journal_.children.push_back({sibling->path, sibling->facts.format, {}});
    }
    for (const ForestImage* child : forest.children_of(image_.path))
      if (!known(child->path)) journal_.children.push_back({child->path, child->facts.format, {}});
    for (const std::string& path : {parent_.path, image_.path})
      for (const std::string& child : forest.disguised_children_of(path))
        if (!same_file(child, image_.path)) disguised.emplace_back(path, child);
  }
  if (live_) VBDKIT_TRY(add_children_of_users());
  // Those in use have said what they are.
  for (const auto& [parent, child] : disguised)
    if (!known(child)) return parent_of_disguised(parent, child);
  return {};
}

uint64_t CoalesceJob::settled() const {
  return std::min(size_, journal_.copied + (copy_ != nullptr ? copy_->settled() : 0));
}

void CoalesceJob::cancel() {
  cancelled_ = true;
  if (copy_ != nullptr) copy_->cancel();
}

void CoalesceJob::start(std::function<void(Result<void>)> done) {
  done_ = std::move(done);
  if (journal_.stage != Stage::kCopy || only_journal_) {
    finish(after_copy());
    return;
  }
  if (auto opened = open_nodes(); !opened) {
    finish(std::move(opened));
    return;
  }
  copy_next();
}

Result<void> CoalesceJob::open_nodes() {
  VBDKIT_ASSIGN(source_, open_alone(image_, context_));
  OpenContext writing = context_;
  writing.options.read_only = false;
  writing.options.shared = false;
  NodeSpec parent = parent_;
  if (live_) {
    VBDKIT_TRY(lock_for_copy());
    parent.options["locking"] = "off";
    writing.options.readers = true;
  }
  VBDKIT_ASSIGN(destination_, open_graph({{parent}}, writing));
  // It is locked, so that nobody copies it.
  VBDKIT_TRY(CoalesceJournal::begin_anew(parent_.path));
  VBDKIT_TRY(journal_.save(journal_path_));
  // What the image does not hold behind the parent's end is zero, and so is what is added here.
  if (destination_->info().size.v < size_) VBDKIT_TRY(destination_->resize(Bytes{size_}));
  return {};
}

void CoalesceJob::copy_next() {
  if (journal_.copied >= size_) {
    clear_tail();
    return;
  }
  CopyOptions options;
  options.offset = journal_.copied;
  options.length = options_.stretch;
  options.absent = CopyOptions::Absent::kKeep;
  copy_ = std::make_unique<CopyJob>(*source_, *destination_, options);
  copy_->start([this](Result<void> result) { copied(std::move(result)); });
}

void CoalesceJob::copied(Result<void> result) {
  const std::unique_ptr<CopyJob> ended = std::move(copy_);
  if (result) {
    journal_.copied += ended->total();
    result = journal_.save(journal_path_);
  }
  if (result && cancelled_) result = Error(ErrorKind::kIo, "interrupted", ECANCELED);
  if (!result)
    finish(std::move(result));
  else
    copy_next();
}

// A parent that is larger: beyond the image's end its children see zeroes.
void CoalesceJob::clear_tail() {
  const uint64_t there = destination_->info().size.v;
  if (there <= size_) {
    context_.reactor.post([this] { finish(close_nodes()); });
    return;
  }
  tail_.job = this;
  tail_.op = Op::kWriteZeroes;
  tail_.flags = kMayUnmap | kFua;
  tail_.offset = size_;
  tail_.length = there - size_;
  tail_.done = [](Request& request, int error) {
    CoalesceJob& job = *static_cast<Tail&>(request).job;
    job.context_.reactor.post([&job, error] {
      if (error != 0)
        job.finish(Error::from_errno(error, "write " + job.parent_.path));
      else
        job.finish(job.close_nodes());
    });
  };
  destination_->submit(tail_);
}

// Not inside of a request's `done`.
Result<void> CoalesceJob::close_nodes() {
  VBDKIT_TRY(may_write());
  if (destination_->info().size.v > size_) {
    // Where the format cannot, the disk stays larger, with zeroes at its end.
    const auto shrunk = destination_->resize(Bytes{size_});
    if (!shrunk && shrunk.error().kind() != ErrorKind::kUnsupported) return shrunk;
  }
  source_.reset();
  destination_.reset();
  return after_copy();
}

Result<void> CoalesceJob::after_copy() {
  if (only_journal_) return remove();
  if (live_) VBDKIT_TRY(claim(Phase::kRelink));
  // It is not written any more, unless it gets another name.
  const LockMode mode = live_ ? LockMode::kReader : LockMode::kWriter;
  if (parent_lock_) {
    VBDKIT_TRY(parent_lock_->change(mode));
  } else {
    VBDKIT_ASSIGN(ImageLock lock, ImageLock::take(parent_.path, mode));
    parent_lock_.emplace(std::move(lock));
  }
  if (journal_.stage != Stage::kRemove) VBDKIT_TRY(relink());
  if (live_) VBDKIT_TRY(refresh_users());
  return remove();
}

// From the child as it is now, where it can be read; else as it was to become. False where it
// stands on something else by now: a snapshot has put another file under its name.
Result<bool> CoalesceJob::plan_child(CoalesceJournal::Child& child) const {
  const ImageFormat* const format = find_image_format(child.format);
  if (format == nullptr || format->plan_parent == nullptr)
    return Error(ErrorKind::kCorrupt, child.path + ": no image that has a parent");
  const auto facts = format->inspect(child.path);
  if (!facts && facts.error().sys_errno() == ENOENT) return false;  // removed meanwhile
  if (facts && (!facts->parent || (!same_file(facts->parent->path, image_.path) &&
                                   !same_file(facts->parent->path, parent_.path))))
    return false;
  auto patches = format->plan_parent(child.path, parent_.path, parent_.driver);
  if (patches)
    child.patches = std::move(patches).value();
  else if (child.patches.empty() || patches.error().kind() != ErrorKind::kCorrupt)
    return std::move(patches).error();
  return true;
}

Result<void> CoalesceJob::relink() {
  // Others may have come meanwhile, and have made snapshots.
  if (live_) VBDKIT_TRY(find_children());
  std::vector<CoalesceJournal::Child> children;
  for (CoalesceJournal::Child& child : journal_.children) {
    VBDKIT_ASSIGN(const bool stands_here, plan_child(child));
    if (stands_here) children.push_back(std::move(child));
  }
  journal_.children = std::move(children);
  journal_.stage = Stage::kRelink;
  VBDKIT_TRY(journal_.save(journal_path_));
  for (const CoalesceJournal::Child& child : journal_.children) {
    VBDKIT_TRY(may_write());
    if (live_) {
      VBDKIT_TRY(relink_live(child));
      continue;
    }
    VBDKIT_ASSIGN(ImageFile file, ImageFile::open(child.path, ImageFile::Mode::kWrite));
    VBDKIT_TRY(apply_patches(file, child.patches));
  }
  return {};
}

// Where nobody stands on the image, its name is what people know: the parent takes it, if it can.
bool CoalesceJob::takes_name() const {
  return journal_.children.empty() && !options_.keep && image_.driver == parent_.driver &&
         same_file(directory_of(image_.path), directory_of(parent_.path));
}

Result<void> CoalesceJob::remove() {
  VBDKIT_TRY(may_write());
  if (!only_journal_) {
    journal_.stage = Stage::kRemove;
    VBDKIT_TRY(journal_.save(journal_path_));
    // Whoever has it open and is not known of.
    if (live_ && !options_.keep) {
      VBDKIT_TRY(claim(Phase::kRemove));
      VBDKIT_TRY(image_lock_->change(LockMode::kWriter));
    }
    result_ = parent_.path;
    if (takes_name()) {
      VBDKIT_TRY(give_owner(parent_.path, image_.path));
      if (::rename(parent_.path.c_str(), image_.path.c_str()) != 0)
        return Error::from_errno(errno, "rename " + parent_.path + " to " + image_.path);
      result_ = image_.path;
    } else if (!options_.keep && ::unlink(image_.path.c_str()) != 0) {
      return Error::from_errno(errno, "remove " + image_.path);
    }
    VBDKIT_TRY(sync_directory(directory_of(image_.path)));
  }
  if (::unlink(journal_path_.c_str()) != 0)
    return Error::from_errno(errno, "remove " + journal_path_);
  return {};
}

void CoalesceJob::finish(Result<void> result) {
  const auto done = std::exchange(done_, nullptr);
  done(std::move(result));
}

}  // namespace vbdkit::drivers
