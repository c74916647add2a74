// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/instance_users.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

#include "storage/command.h"
#include "storage/instance_argument.h"
#include "storage/remote.h"

namespace vbdkit::storage {
namespace {

using Mode = ImageClaims::Mode;

// An instance may have a long queue of storage that is slow; it answers between two requests.
constexpr std::chrono::minutes kPatience{5};
constexpr std::chrono::seconds kPatienceForSsh{30};  // beyond that

// Instances have working directories of their own.
std::string absolute(const std::string& path) {
  std::error_code error;
  const auto full = std::filesystem::absolute(path, error);
  return error ? path : full.string();
}

// The registry knows a device by its own number.
drivers::FileIdentity identity_of(const RegisteredImage& image) {
  if (!image.block_device) return {image.device, image.inode};
  const auto stamp = drivers::FileStamp::of(image.path);
  return stamp ? stamp->identity : drivers::FileIdentity{};
}

// Another host's file by its inode, which is the same here, also where its name is new.
drivers::FileIdentity identity_here(const RegisteredImage& image, const std::string& path) {
  if (image.block_device) {
    const auto stamp = drivers::FileStamp::of(path);
    return stamp ? stamp->identity : drivers::FileIdentity{};
  }
  struct stat st {};
  const std::string directory = std::filesystem::path(path).parent_path().string();
  if (image.inode == 0 || ::stat(directory.c_str(), &st) != 0) return {};
  return {uint64_t{st.st_dev}, image.inode};
}

Error cannot_be_asked(const std::string& path, const SharedRegistry::User& user,
                      const std::string& why) {
  return Error(ErrorKind::kBusy,
               path + " is in use on host " + user.host + " by " + user.holder + " (" + user.mode +
                   ", " + user.path + "): " + why,
               EBUSY);
}

}  // namespace

Result<void> InstanceUsers::claim(const std::string& image, const std::string& parent,
                                  Phase phase) {
  if (claims_ == nullptr) return {};
  switch (phase) {
    case Phase::kAlone:
      return claims_->change_now({{image, Mode::kWrite}, {parent, Mode::kWrite}});
    case Phase::kCopy:
      return claims_->change_now({{image, Mode::kRead}, {parent, Mode::kMerge, image}});
    case Phase::kRelink:
      return claims_->change_now({{image, Mode::kRead}, {parent, Mode::kRead}});
    case Phase::kRemove:
      return claims_->change_now({{image, Mode::kWrite}, {parent, Mode::kRead}});
  }
  return {};
}

Result<void> InstanceUsers::claim_header(const std::string& path) {
  return claims_ == nullptr ? Result<void>() : claims_->change_now({{path, Mode::kMerge}});
}

Result<std::vector<drivers::CoalesceUsers::User>> InstanceUsers::of(const std::string& path) {
  VBDKIT_ASSIGN(const auto records, registry_.find_image(path, Registry::Where::kAnywhere));
  std::vector<User> users;
  for (const InstanceRecord& record : records) {
    User user;
    user.name = record.uuid;
    user.read_only = record.read_only;
    for (const RegisteredImage& image : record.chain)
      user.chain.push_back({image.path, image.format, identity_of(image)});
    users.push_back(std::move(user));
  }
  if (claims_ != nullptr) VBDKIT_TRY(add_users_elsewhere(path, users));
  return users;
}

// Claims say who, at once; records, a moment later, for what.
Result<void> InstanceUsers::add_users_elsewhere(const std::string& path, std::vector<User>& users) {
  VBDKIT_ASSIGN(const auto config, RegistryConfig::load(registry_config_path()));
  if (!config) return {};
  VBDKIT_ASSIGN(const auto shared_image, config->image_at(path));
  if (!shared_image) return {};
  VBDKIT_ASSIGN(auto shared, SharedRegistry::open(registry_.runtime_dir()));
  if (!shared) return {};
  VBDKIT_ASSIGN(const auto others, shared->users_of(path));
  for (const SharedRegistry::User& other : others) {
    if (other.host == config->host) continue;
    auto found = shared->find_uuid(other.holder);
    if (!found) return cannot_be_asked(path, other, found.error().message());
    if (found->host != other.host || found->record.uuid != other.holder)
      return cannot_be_asked(path, other, "no running disk that could be asked");
    User user;
    user.name = other.holder;
    user.host = other.host;
    user.read_only = found->record.read_only;
    for (const RegisteredImage& image : found->record.chain) {
      const auto here = config->path_here(image.path, found->shares);
      user.chain.push_back({here.value_or(image.path), image.format,
                            here ? identity_here(image, *here) : drivers::FileIdentity{}});
    }
    elsewhere_.insert_or_assign(user.name, std::move(*found));
    users.push_back(std::move(user));
  }
  return {};
}

// What the user has this host's file as.
Result<std::string> InstanceUsers::path_at(const User& user, const std::string& path) const {
  if (user.host.empty()) return absolute(path);
  VBDKIT_ASSIGN(const auto config, RegistryConfig::load(registry_config_path()));
  const auto at = elsewhere_.find(user.name);
  auto there = config && at != elsewhere_.end() ? config->path_there(path, at->second.shares)
                                                : std::optional<std::string>();
  if (!there)
    return Error(ErrorKind::kInvalid, path + " is on no share that host " + user.host + " has");
  return std::move(*there);
}

Result<void> InstanceUsers::tell(const User& user, const char* command,
                                 const std::string& arguments) {
  const auto named = [&](Error error) {
    return std::move(error).context("instance " + user.name +
                                    (user.host.empty() ? "" : " on host " + user.host));
  };
  if (user.host.empty()) {
    const auto record = registry_.read(user.name);
    if (!record || !record->alive) return {};  // it has ended, and uses nothing any more
    auto answer = ask(*record, command, arguments, kPatience);
    if (!answer) return named(std::move(answer).error());
    return {};
  }
  const auto seconds = std::chrono::seconds(kPatience);
  std::vector<std::string> words = {"qmp", "--timeout", std::to_string(seconds.count()),
                                    "--",  user.name,   command};
  if (!arguments.empty()) words.push_back(arguments);
  auto answer = ask_host(user.host, words, seconds + kPatienceForSsh);
  if (!answer) return named(std::move(answer).error());
  if (answer->status == kExitOk || answer->status == kExitNoInstance) return {};
  return named(Error(ErrorKind::kIo, answer->errors.empty()
                                         ? "ssh ended with status " + std::to_string(answer->status)
                                         : answer->errors));
}

Result<void> InstanceUsers::yield_locks(const User& user, const std::vector<std::string>& paths) {
  control::JsonWriter w;
  w.begin_object().key("paths").begin_array();
  for (const std::string& path : paths) {
    VBDKIT_ASSIGN(const std::string there, path_at(user, path));
    w.string(there);
  }
  w.end_array().end_object();
  return tell(user, "x-vbdkit-yield-lock", w.take());
}

Result<void> InstanceUsers::relink(const User& user, const std::string& from, const Image& to) {
  VBDKIT_ASSIGN(const std::string from_there, path_at(user, from));
  VBDKIT_ASSIGN(const std::string to_there, path_at(user, to.path));
  control::JsonWriter w;
  w.begin_object().field("from", from_there).field("parent", to_there);
  w.field("parent-format", to.format).end_object();
  return tell(user, "x-vbdkit-relink", w.take());
}

Result<void> InstanceUsers::refresh(const User& user) { return tell(user, "x-vbdkit-refresh", {}); }

}  // namespace vbdkit::storage
