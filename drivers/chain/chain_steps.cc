// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/chain/chain_steps.h"

#include <sys/stat.h>

#include <algorithm>

namespace vbdkit::drivers {

Result<void> ChainSteps::add(const std::string& path) {
  paths_.push_back(path);
  if (paths_.size() > kMaxChainDepth)
    return Error(ErrorKind::kUnsupported,
                 "the chain is longer than " + std::to_string(kMaxChainDepth) + " images");
  VBDKIT_ASSIGN(const FileStamp stamp, FileStamp::of(path));
  const auto same = [&](const FileStamp& other) { return other.identity == stamp.identity; };
  if (std::any_of(stamps_.begin(), stamps_.end(), same))
    return Error(ErrorKind::kCorrupt, "the chain is a loop: this file is in it already");
  stamps_.push_back(stamp);
  return {};
}

std::optional<size_t> ChainSteps::go_back(size_t first, const Error& why) {
  constexpr unsigned kTries = 16;
  if (why.kind() != ErrorKind::kNotFound && why.kind() != ErrorKind::kCorrupt) return std::nullopt;
  if (tries_ == kTries) return std::nullopt;
  for (size_t at = first; at < stamps_.size(); ++at) {
    const auto now = FileStamp::of(paths_[at]);
    if (now && stamps_[at].looks_like(*now)) continue;
    ++tries_;
    paths_.resize(at);
    stamps_.resize(at);
    return at;
  }
  return std::nullopt;
}

Result<void> ChainSteps::check(const ParentReference& reference) const {
  if (reference.path.empty())
    return Error(ErrorKind::kCorrupt, "it has a parent but does not say where");
  if (reference.format.empty())
    return Error(ErrorKind::kUnsupported,
                 "it does not say which format its parent " + reference.path +
                     " has, and formats are not guessed (qemu-img rebase -u -F records it)");
  struct stat st {};
  if (stat(reference.path.c_str(), &st) != 0 && errno == ENOENT) {
    std::string tried;
    for (const std::string& path : reference.tried) tried += (tried.empty() ? "" : ", ") + path;
    return Error(ErrorKind::kNotFound, "its parent is missing; looked for " + tried, ENOENT);
  }
  return {};
}

Result<void> ChainSteps::check_identity(const ParentReference& reference,
                                        const std::string& uuid) const {
  if (!reference.uuid.empty() && reference.uuid != uuid)
    return Error(ErrorKind::kCorrupt, "it is not the parent its child was made on: UUID " +
                                          (uuid.empty() ? "none" : uuid) + ", expected " +
                                          reference.uuid);
  return {};
}

Error ChainSteps::failed(Error error) const {
  std::string steps;
  for (const std::string& path : paths_)
    steps += (steps.empty() ? ": open " : ", its parent ") + path;
  // Whoever opens a file names it too.
  const std::string repeated = paths_.empty() ? "" : "open " + paths_.back() + ": ";
  if (!repeated.empty() && error.message().starts_with(repeated))
    error = Error(error.kind(), error.message().substr(repeated.size()), error.sys_errno());
  return std::move(error).context(driver_ + steps);
}

}  // namespace vbdkit::drivers
