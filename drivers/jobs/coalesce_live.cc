// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a coalesce has to do with those who use the images meanwhile.
#include <algorithm>

#include "drivers/jobs/coalesce_job.h"

namespace vbdkit::drivers {
namespace {

using User = CoalesceUsers::User;

constexpr unsigned kAttempts = 3;

size_t position(const User& user, const FileIdentity& file) {
  const auto at = std::find_if(user.chain.begin(), user.chain.end(),
                               [&](const auto& image) { return image.identity == file; });
  return static_cast<size_t>(at - user.chain.begin());
}

Result<FileIdentity> identity_of(const std::string& path) {
  VBDKIT_ASSIGN(const FileStamp stamp, FileStamp::of(path));
  return stamp.identity;
}

Error busy(const User& user, const std::string& why) {
  const std::string where = user.host.empty() ? " " : " on host " + user.host + " ";
  return Error(ErrorKind::kBusy, "instance " + user.name + where + why, EBUSY);
}

// Better not than at a venture.
Error unclear(const User& user, const std::string& path) {
  return busy(user, "has " + path + " open; it cannot be told for what");
}

}  // namespace

Result<void> CoalesceJob::claim(CoalesceUsers::Phase phase) const {
  if (options_.users == nullptr) return {};
  return options_.users->claim(image_.path, parent_.path, phase);
}

bool CoalesceJob::is_child(const FileIdentity& file) const {
  return std::any_of(journal_.children.begin(), journal_.children.end(), [&](const auto& child) {
    const auto identity = identity_of(child.path);
    return identity && *identity == file;
  });
}

// What stands on the image in the chains of those who have it open: no directory need be known.
Result<void> CoalesceJob::add_children_of_users() {
  VBDKIT_ASSIGN(const FileIdentity image, identity_of(image_.path));
  VBDKIT_ASSIGN(const auto users, options_.users->of(image_.path));
  for (const User& user : users) {
    const size_t at = position(user, image);
    if (at >= user.chain.size()) return unclear(user, image_.path);
    if (at == 0) continue;  // look_for_users()
    const CoalesceUsers::Image& child = user.chain[at - 1];
    if (is_child(child.identity)) continue;
    const auto here = identity_of(child.path);
    if (!here || *here != child.identity)
      return busy(user, "has " + child.path + " on " + image_.path +
                            ", which is not found here (it may just have been given another name)");
    journal_.children.push_back({child.path, child.format, {}});
  }
  return {};
}

// Nobody may read the parent by another way than through the image. What an interrupted job has put
// there already is on the list of children.
Result<void> CoalesceJob::look_for_users() const {
  VBDKIT_ASSIGN(const FileIdentity image, identity_of(image_.path));
  VBDKIT_ASSIGN(const FileIdentity parent, identity_of(parent_.path));
  VBDKIT_ASSIGN(const auto users, options_.users->of(parent_.path));
  for (const User& user : users) {
    const size_t at = position(user, parent);
    if (at >= user.chain.size()) return unclear(user, parent_.path);
    if (at == 0) return busy(user, "has " + parent_.path + " as its disk");
    const CoalesceUsers::Image& above = user.chain[at - 1];
    if (above.identity == image) {
      if (at == 1)
        return busy(user, "has " + image_.path +
                              " as its disk; this merges what stands between "
                              "a disk and its base");
      continue;
    }
    if (!is_child(above.identity) || journal_.stage == CoalesceJournal::Stage::kCopy)
      return busy(user, "reads the parent " + parent_.path + " through " + above.path +
                            ", which would change with it");
  }
  return {};
}

// All who have the file open for reading let us write it. On a slow machine one of them may have
// taken its lock back before we have ours, or another may have come: they are asked again.
Result<ImageLock> CoalesceJob::borrow(const std::string& path) const {
  for (unsigned attempt = 1;; ++attempt) {
    VBDKIT_ASSIGN(const auto users, options_.users->of(path));
    for (const User& user : users) VBDKIT_TRY(options_.users->yield_locks(user, {path}));
    auto lock = ImageLock::take(path, LockMode::kCoalescer);
    if (lock || lock.error().kind() != ErrorKind::kBusy || attempt == kAttempts) return lock;
  }
}

Result<void> CoalesceJob::lock_for_copy() {
  VBDKIT_ASSIGN(ImageLock lock, borrow(parent_.path));
  parent_lock_.emplace(std::move(lock));
  // Who came between the question and the lock was met by it; who was there is looked at again.
  return look_for_users();
}

Result<void> CoalesceJob::relink_live(const CoalesceJournal::Child& child) {
  VBDKIT_ASSIGN(const FileIdentity file, identity_of(child.path));
  VBDKIT_ASSIGN(const FileIdentity parent, identity_of(parent_.path));
  VBDKIT_ASSIGN(const auto users, options_.users->of(child.path));
  for (const User& user : users)
    if (position(user, file) == 0 && !user.read_only)
      return options_.users->relink(user, image_.path, {parent_.path, parent_.driver, parent});
  VBDKIT_TRY(options_.users->claim_header(child.path));
  VBDKIT_ASSIGN(const ImageLock lock, users.empty() ? ImageLock::take(child.path, LockMode::kWriter)
                                                    : borrow(child.path));
  // Now nobody changes it; before, somebody may have.
  CoalesceJournal::Child again = child;
  VBDKIT_ASSIGN(const bool stands_here, plan_child(again));
  if (!stands_here)
    return Error(ErrorKind::kBusy, child.path + " has just been given another parent", EBUSY);
  VBDKIT_ASSIGN(ImageFile opened, ImageFile::open(child.path, ImageFile::Mode::kWrite));
  return apply_patches(opened, again.patches);
}

Result<void> CoalesceJob::refresh_users() {
  for (unsigned attempt = 1;; ++attempt) {
    VBDKIT_ASSIGN(const auto users, options_.users->of(image_.path));
    if (users.empty()) return {};
    // Others may have come meanwhile, who had looked at their chains before the children were
    // linked.
    if (attempt > kAttempts) return busy(users.front(), "still has " + image_.path + " open");
    for (const User& user : users) VBDKIT_TRY(options_.users->refresh(user));
  }
}

}  // namespace vbdkit::drivers
