// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/group_snapshot.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <random>
#include <utility>

#include "drivers/file_lock.h"
#include "drivers/image_forest.h"
#include "drivers/journal_text.h"

namespace vbdkit::drivers {
namespace {

constexpr const char* kGroupLine = "vbdkit-group 1";
constexpr const char* kMemberLine = "vbdkit-member 1";

std::string record_of(const std::string& image) { return image + std::string(kMemberRecord); }

// The journal by its name while it is undecided.
std::string taken_name(const std::string& journal) {
  return journal.substr(0, journal.size() - kGroupJournal.size()) + std::string(kGroupTaken);
}

Result<std::string> absolute(const std::string& path) {
  std::error_code error;
  const auto full = std::filesystem::absolute(path, error);
  if (error) return Error::from_errno(error.value(), path);
  return full.lexically_normal().string();
}

uint64_t inode_of(const std::string& path) {
  struct stat st {};
  return ::stat(path.c_str(), &st) == 0 ? st.st_ino : 0;
}

Error corrupt(const std::string& path) {
  return Error(ErrorKind::kCorrupt, path + ": not what a group of snapshots has left");
}

Result<void> remove_file(const std::string& path) {
  if (::unlink(path.c_str()) == 0 || errno == ENOENT) return {};
  return Error::from_errno(errno, "remove " + path);
}

Result<std::vector<std::string>> load_images(const std::string& path) {
  VBDKIT_ASSIGN(const auto text, load_journal(path));
  std::vector<std::string> images;
  if (!text) return images;
  std::string_view rest = *text;
  // One that was cut off while it was made has no members yet.
  if (take_until(rest, '\n') != kGroupLine) return images;
  while (!rest.empty()) {
    JournalLine line(take_until(rest, '\n'));
    std::string image = line.text();
    if (line.keyword() != "image" || !line.good()) return corrupt(path);
    images.push_back(std::move(image));
  }
  return images;
}

// Not ImageLock, which comes here first.
Result<Fd> lock_writer(const std::string& path) {
  VBDKIT_ASSIGN(Fd fd, Fd::open(path, O_RDWR | O_NONBLOCK));
  VBDKIT_TRY(lock_image(fd.get(), path, LockMode::kWriter));
  VBDKIT_TRY(check_name(fd.get(), path));
  return fd;
}

// A journal whose verdict says that snapshots were taken is needed for as long as there is a record
// that names it.
Result<void> remove_journal(const std::string& journal) {
  const std::string taken = taken_name(journal);
  VBDKIT_ASSIGN(const auto images, load_images(taken));
  for (const std::string& image : images)
    if (inode_of(record_of(image)) != 0) return {};
  for (const std::string& image : images) {
    const std::string directory = directory_of(image);
    if (inode_of(directory) != 0) VBDKIT_TRY(sync_directory(directory));
  }
  return remove_file(taken);
}

}  // namespace

Result<SnapshotGroup> SnapshotGroup::begin(std::vector<std::string> images) {
  std::string text = std::string(kGroupLine) + "\n";
  for (std::string& image : images) {
    VBDKIT_ASSIGN(image, absolute(image));
    text += "image " + to_hex(image) + "\n";
  }
  std::random_device random;
  const std::array<uint32_t, 2> id = {random(), random()};
  const std::string path =
      images.front() + "." + to_hex(std::as_bytes(std::span(id))) + std::string(kGroupJournal);
  VBDKIT_ASSIGN(Fd fd, Fd::open(path, O_RDWR | O_CREAT | O_EXCL, 0600));
  VBDKIT_TRY(give_owner(path, images.front()));
  VBDKIT_TRY(lock_image(fd.get(), path, LockMode::kWriter));
  SnapshotGroup group(path, std::move(fd));
  VBDKIT_ASSIGN(ImageFile file, ImageFile::open(path, ImageFile::Mode::kWrite));
  VBDKIT_TRY(file.write(0, std::as_bytes(std::span(text))));
  VBDKIT_TRY(file.flush());
  VBDKIT_TRY(sync_directory(directory_of(path)));
  return group;
}

SnapshotGroup::SnapshotGroup(SnapshotGroup&& other) noexcept
    : path_(std::move(other.path_)),
      lock_(std::move(other.lock_)),
      open_(std::exchange(other.open_, false)) {}

SnapshotGroup::~SnapshotGroup() {
  // Where that cannot be done, each member finds out.
  if (open_) (void)settle_group(path_);
}

Result<void> SnapshotGroup::decide() {
  open_ = false;
  if (::rename(path_.c_str(), taken_name(path_).c_str()) == 0)
    return sync_directory(directory_of(path_));
  if (errno == ENOENT)
    return Error(ErrorKind::kTimedOut, "a disk could wait no longer and goes on without it");
  const int error = errno;
  open_ = true;
  return Error::from_errno(error, "rename " + path_);
}

Result<void> SnapshotGroup::end() { return remove_journal(path_); }

Result<Verdict> settle_group(const std::string& journal, bool durable_already) {
  if (!journal.ends_with(kGroupJournal)) return corrupt(journal);
  Verdict verdict = Verdict::kGivenUp;
  if (::unlink(journal.c_str()) != 0) {
    if (errno != ENOENT) return Error::from_errno(errno, "remove " + journal);
    const auto taken = Fd::open(taken_name(journal), O_RDONLY);
    if (!taken && taken.error().sys_errno() != ENOENT) return taken.error();
    if (taken) verdict = Verdict::kTaken;
    if (durable_already) return verdict;
  }
  // Whoever did it may not have come to this.
  if (inode_of(directory_of(journal)) != 0) VBDKIT_TRY(sync_directory(directory_of(journal)));
  return verdict;
}

bool group_abandoned(const std::string& journal) {
  const auto fd = Fd::open(journal, O_RDONLY);
  if (!fd) return fd.error().sys_errno() == ENOENT;
  struct flock l {};
  l.l_type = F_RDLCK;
  l.l_whence = SEEK_SET;
  return ::fcntl(fd->get(), F_OFD_GETLK, &l) == 0 && l.l_type == F_UNLCK;
}

Result<GroupMember> GroupMember::prepare(const NodeSpec& image, const std::string& name,
                                         const std::map<std::string, std::string>& options,
                                         const std::string& journal) {
  if (!journal.ends_with(kGroupJournal) || inode_of(journal) == 0)
    return Error(ErrorKind::kInvalid, journal + " is not the journal of a group of snapshots");
  VBDKIT_ASSIGN(std::string journal_path, absolute(journal));
  GroupMember member(image.path, name, std::move(journal_path));
  member.former_ = inode_of(image.path);
  VBDKIT_TRY(member.save());
  const auto make = [&]() -> Result<void> {
    VBDKIT_ASSIGN(auto snapshot, ImageSnapshot::prepare(image, name, options));
    VBDKIT_ASSIGN(const FileStamp stamp, FileStamp::of(snapshot.fresh()));
    member.leaf_ = {stamp.identity.inode, stamp.size};
    VBDKIT_TRY(member.save());
    return snapshot.commit();
  };
  auto made = make();
  if (made) return member;
  // What was made is gone again; a record that stays is met by the next who writes the image.
  (void)member.remove_record();
  return std::move(made).error();
}

Result<std::optional<GroupMember>> GroupMember::load(const std::string& image) {
  VBDKIT_ASSIGN(const auto text, load_journal(record_of(image)));
  if (!text) return std::optional<GroupMember>();
  GroupMember member(image, {}, {});
  std::string_view rest = *text;
  bool good = take_until(rest, '\n') == kMemberLine;
  while (good && !rest.empty()) {
    JournalLine line(take_until(rest, '\n'));
    const std::string_view key = line.keyword();
    if (key == "journal") {
      member.journal_ = line.text();
    } else if (key == "name") {
      member.name_ = line.text();
    } else if (key == "former") {
      member.former_ = line.number();
    } else if (key == "leaf") {
      member.leaf_.inode = line.number();
      member.leaf_.size = line.number();
    } else {
      good = false;
    }
    good = good && line.good();
  }
  // Beside the image, and nothing else's.
  if (!good || member.name_.empty() || member.name_.find('/') != std::string::npos ||
      !member.journal_.ends_with(kGroupJournal))
    return corrupt(record_of(image));
  const std::filesystem::path directory = directory_of(image);
  member.name_ = (directory / member.name_).string();
  member.journal_ = (directory / member.journal_).lexically_normal().string();
  return std::optional<GroupMember>(std::move(member));
}

// Names that go with the directory, wherever it is moved.
Result<void> GroupMember::save() const {
  VBDKIT_ASSIGN(const std::string directory, absolute(directory_of(image_)));
  const std::string journal =
      std::filesystem::path(journal_).lexically_proximate(directory).string();
  std::string text = std::string(kMemberLine) + "\n";
  text += "journal " + to_hex(journal) + "\n";
  text += "name " + to_hex(std::filesystem::path(name_).filename().string()) + "\n";
  text += "former " + std::to_string(former_) + "\n";
  text += "leaf " + std::to_string(leaf_.inode) + " " + std::to_string(leaf_.size) + "\n";
  VBDKIT_TRY(save_journal(record_of(image_), text));
  return give_owner(record_of(image_), image_);
}

Result<void> GroupMember::remove_record() const {
  VBDKIT_TRY(remove_file(record_of(image_)));
  return sync_directory(directory_of(image_));
}

Result<void> GroupMember::keep() {
  // The exchange of names was durable before the vote.
  VBDKIT_TRY(remove_record());
  return remove_journal(journal_);
}

Result<void> GroupMember::undo() {
  VBDKIT_TRY(take_names_back());
  VBDKIT_TRY(sync_directory(directory_of(image_)));
  return remove_record();
}

// By the files themselves: others may have come as far as we.
Result<void> GroupMember::take_names_back() const {
  const uint64_t image = inode_of(image_);
  const bool kept = former_ != 0 && inode_of(name_) == former_;
  if (image == former_) {
    if (kept) VBDKIT_TRY(remove_file(name_));
    return remove_file(image_ + std::string(kNewImage));
  }
  if (image != leaf_.inode || !kept) return {};
  if (::rename(name_.c_str(), image_.c_str()) == 0) return {};
  return Error::from_errno(errno, "rename " + name_ + " to " + image_);
}

bool GroupMember::leaf_was_written() const {
  const auto stamp = FileStamp::of(image_);
  return stamp && leaf_.inode != 0 && stamp->identity.inode == leaf_.inode &&
         stamp->size != leaf_.size;
}

Result<void> end_interrupted_group(const std::string& image) {
  VBDKIT_ASSIGN(auto found, GroupMember::load(image));
  if (!found) {
    // The first record of one who was killed; at the worst that of one who finds it gone, and
    // fails. To look whether it is there would cost what its removal does.
    ::unlink((record_of(image) + ".new").c_str());
    return {};
  }
  // Its owner may live.
  std::vector<Fd> locks;
  for (const std::string& path : {image, found->name_}) {
    if (inode_of(path) == 0 || (!locks.empty() && inode_of(path) == inode_of(image))) continue;
    VBDKIT_ASSIGN(Fd lock, lock_writer(path));
    locks.push_back(std::move(lock));
  }
  VBDKIT_ASSIGN(auto member, GroupMember::load(image));
  if (!member) return {};
  VBDKIT_ASSIGN(const Verdict verdict, settle_group(member->journal_));
  // Somebody has written it who asks nobody: the snapshot stays, as the writes must.
  if (verdict == Verdict::kTaken || member->leaf_was_written()) return member->keep();
  return member->undo();
}

Result<std::optional<OpenMembership>> open_membership(const std::string& image) {
  VBDKIT_ASSIGN(const auto member, GroupMember::load(image));
  if (!member) return std::optional<OpenMembership>();
  return std::optional<OpenMembership>({member->name_, member->journal_});
}

Result<void> end_abandoned_group(const std::string& journal) {
  const bool decided = journal.ends_with(kGroupTaken);
  const std::string undecided =
      decided ? journal.substr(0, journal.size() - kGroupTaken.size()) + std::string(kGroupJournal)
              : journal;
  VBDKIT_ASSIGN(const auto images, load_images(journal));
  if (!decided) {
    VBDKIT_ASSIGN(const Fd lock, lock_writer(journal));
    VBDKIT_ASSIGN(const Verdict verdict, settle_group(undecided));
    static_cast<void>(verdict);
  }
  for (const std::string& image : images) {
    auto ended = end_interrupted_group(image);
    // Who has it open does that himself, now that there is a verdict.
    if (!ended && ended.error().kind() != ErrorKind::kBusy) return ended;
  }
  return remove_journal(undecided);
}

}  // namespace vbdkit::drivers
