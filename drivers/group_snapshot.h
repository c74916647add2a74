// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Snapshots of several images (image_snapshot.h) at one moment: all of them or none, whoever is
// killed in between.
//
// The group has a journal beside its first image, and what becomes of that file is the verdict:
// renamed (kTaken at its end) the snapshots are taken, removed they are not. Whoever comes first
// decides, and nobody can decide otherwise later. Each image has a record beside it, from before
// its files are touched until the verdict is carried out there: while that is there, the new leaf
// is not written. A member whose disk stands still votes by saying so; where it can wait no longer
// it gives the group up, and so knows that nobody takes the snapshots. Who finds a record whose
// owner has died does the same, before the image is written again.
// Block; one owner each, any thread. Images are locked by the caller, or open for writing there.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "drivers/image_snapshot.h"
#include "drivers/registry.h"

namespace vbdkit::drivers {

// The journal, as whoever wants the snapshots has it.
class SnapshotGroup {
 public:
  // It is durable then. `images`: whose snapshots they are, the first one's directory has it.
  static Result<SnapshotGroup> begin(std::vector<std::string> images);
  SnapshotGroup(SnapshotGroup&& other) noexcept;
  SnapshotGroup& operator=(SnapshotGroup&&) = delete;
  ~SnapshotGroup();  // gives up what is not decided

  const std::string& journal() const { return path_; }
  // When all have voted. kTimedOut where a member has given it up.
  Result<void> decide();
  // The members have carried the verdict out, or are gone; then their records keep the journal.
  Result<void> end();

 private:
  SnapshotGroup(std::string path, Fd lock) : path_(std::move(path)), lock_(std::move(lock)) {}

  std::string path_;
  Fd lock_;  // while it lives, others leave it alone until they must
  bool open_ = true;
};

enum class Verdict { kTaken, kGivenUp };
// Where there is none yet the group is given up. Durable on return, where it was not already, as
// whoever decides knows: disks wait meanwhile, and a flush of a directory takes its time.
Result<Verdict> settle_group(const std::string& journal, bool durable_already = false);

// There is a verdict, or nobody any more who would take the snapshots.
bool group_abandoned(const std::string& journal);

struct OpenMembership {
  std::string name;  // that the image's content has got
  std::string journal;
};

class GroupMember {
 public:
  // All files of the snapshot, durable: the image's name is the new leaf's.
  static Result<GroupMember> prepare(const NodeSpec& image, const std::string& name,
                                     const std::map<std::string, std::string>& options,
                                     const std::string& journal);

  // By the verdict. undo(): the new leaf was not written, and nobody has it open.
  Result<void> keep();
  Result<void> undo();

 private:
  friend Result<void> end_interrupted_group(const std::string& image);
  friend Result<std::optional<OpenMembership>> open_membership(const std::string& image);
  // A leaf that stands on another image grows with the first byte written to it; opening one for
  // writing may change its times.
  struct LeafStamp {
    uint64_t inode = 0;  // 0: there is none yet
    uint64_t size = 0;   // bytes
  };

  GroupMember(std::string image, std::string name, std::string journal)
      : image_(std::move(image)), name_(std::move(name)), journal_(std::move(journal)) {}
  static Result<std::optional<GroupMember>> load(const std::string& image);
  Result<void> save() const;
  Result<void> take_names_back() const;
  Result<void> remove_record() const;
  bool leaf_was_written() const;

  std::string image_;
  std::string name_;     // which its content gets
  std::string journal_;  // absolute
  uint64_t former_ = 0;  // inode of the image's file
  LeafStamp leaf_;
};

// Before an image that nobody has open is written: carries out what a group's verdict says of it.
// Nothing where it has no record.
Result<void> end_interrupted_group(const std::string& image);
// What the image's record says, where it has one.
Result<std::optional<OpenMembership>> open_membership(const std::string& image);
// As end_interrupted_group(), for all images of a journal, which goes. Refused while its owner
// lives.
Result<void> end_abandoned_group(const std::string& journal);

// What the names of records and journals end in.
inline constexpr std::string_view kMemberRecord = ".vbdkit-member";
inline constexpr std::string_view kGroupJournal = ".vbdkit-group";
inline constexpr std::string_view kGroupTaken = ".vbdkit-group-taken";

}  // namespace vbdkit::drivers
