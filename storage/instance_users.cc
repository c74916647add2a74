// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/instance_users.h"

#include <filesystem>

#include "storage/instance_argument.h"

namespace vbdkit::storage {
namespace {

// An instance may have a long queue of storage that is slow; it answers between two requests.
constexpr std::chrono::minutes kPatience{5};

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

}  // namespace

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
  return users;
}

Result<void> InstanceUsers::tell(const User& user, const char* command,
                                 const std::string& arguments) {
  const auto record = registry_.read(user.name);
  if (!record || !record->alive) return {};  // it has ended, and uses nothing any more
  auto answer = ask(*record, command, arguments, kPatience);
  if (!answer) return std::move(answer).error().context("instance " + user.name);
  return {};
}

Result<void> InstanceUsers::yield_locks(const User& user, const std::vector<std::string>& paths) {
  control::JsonWriter w;
  w.begin_object().key("paths").begin_array();
  for (const std::string& path : paths) w.string(absolute(path));
  w.end_array().end_object();
  return tell(user, "x-vbdkit-yield-lock", w.take());
}

Result<void> InstanceUsers::relink(const User& user, const std::string& from, const Image& to) {
  control::JsonWriter w;
  w.begin_object().field("from", absolute(from)).field("parent", absolute(to.path));
  w.field("parent-format", to.format).end_object();
  return tell(user, "x-vbdkit-relink", w.take());
}

Result<void> InstanceUsers::refresh(const User& user) { return tell(user, "x-vbdkit-refresh", {}); }

}  // namespace vbdkit::storage
