// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/registry.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "backend/registry_index.h"
#include "backend/runtime_dir.h"
#include "base/fd.h"
#include "base/process.h"

namespace vbdkit::storage {

namespace {

using control::Json;

constexpr off_t kMaxRecord = 16 << 20;  // bytes
constexpr size_t kMinPrefix = 4;        // digits of a UUID

bool is_name_of_instance(std::string_view name) {
  const auto known = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
           c == '_' || c == '.';
  };
  return !name.empty() && name.front() != '.' && std::all_of(name.begin(), name.end(), known);
}

// Nothing where there is no such directory.
std::optional<std::vector<std::string>> names_in(const std::string& path) {
  auto fd = Fd::open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  if (!fd) return std::nullopt;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::fdopendir(fd->get()), ::closedir);
  if (!dir) return std::nullopt;
  fd->release();
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(dir.get())) {
    if (is_name_of_instance(entry->d_name)) names.emplace_back(entry->d_name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

Json read_record(const std::string& path) {
  const auto fd = Fd::open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  struct stat st {};
  if (!fd || ::fstat(fd->get(), &st) < 0 || !S_ISREG(st.st_mode) || st.st_size > kMaxRecord)
    return {};
  std::string text(static_cast<size_t>(st.st_size), '\0');
  const ssize_t n = ::read(fd->get(), text.data(), text.size());
  if (n != st.st_size) return {};
  auto json = Json::parse(text);
  return json ? std::move(*json) : Json();
}

std::string text_of(const Json& json, std::string_view key) {
  return json.member(key).string().value_or("");
}
uint64_t number_of(const Json& json, std::string_view key) {
  return json.member(key).number().value_or(0);
}
bool flag_of(const Json& json, std::string_view key) {
  return json.member(key).boolean().value_or(false);
}

RegisteredImage image_of(const Json& json) {
  return {.format = text_of(json, "format"),
          .path = text_of(json, "path"),
          .device = number_of(json, "device"),
          .inode = number_of(json, "inode"),
          .generation = static_cast<uint32_t>(number_of(json, "generation")),
          .block_device = flag_of(json, "block-device"),
          .read_only = flag_of(json, "ro"),
          .size = number_of(json, "virtual-size")};
}

std::string key_of(const RegisteredImage& image) {
  if (image.device == 0) return uri_key(image.path);
  return image.block_device ? block_device_key(image.device) : file_key(image.device, image.inode);
}

bool has_key(const InstanceRecord& record, const std::string& key) {
  return std::any_of(record.chain.begin(), record.chain.end(),
                     [&](const RegisteredImage& image) { return key_of(image) == key; }) ||
         std::any_of(record.vbds.begin(), record.vbds.end(), [&](const RegisteredVbd& vbd) {
           return vbd_key(vbd.domid, vbd.devid) == key;
         });
}

}  // namespace

std::string default_runtime_dir() {
  const char* const dir = std::getenv("VBDKIT_RUNTIME_DIR");
  return dir != nullptr && *dir != '\0' ? dir : "/run/vbdkit";
}

Registry::Registry(std::string runtime_dir) : runtime_dir_(std::move(runtime_dir)) {}

InstanceRecord parse_record(std::string uuid, Json json) {
  InstanceRecord record;
  record.uuid = std::move(uuid);
  record.host = text_of(json, "host");
  record.pid = static_cast<pid_t>(number_of(json, "pid"));
  record.start_time = number_of(json, "start-time");
  record.spec = text_of(json, "spec");
  record.state = text_of(json, "state");
  record.read_only = flag_of(json, "read-only");
  record.shared = flag_of(json, "shared");
  record.managed = flag_of(json, "managed");
  record.size = number_of(json, "virtual-size");
  const Json chain = json.member("chain");
  for (size_t i = 0; i < chain.size(); ++i) record.chain.push_back(image_of(chain.at(i)));
  const Json consumers = json.member("consumers");
  for (size_t i = 0; i < consumers.size(); ++i) {
    const Json consumer = consumers.at(i);
    if (consumer.member("type").string() != "vbd") continue;
    record.vbds.push_back({.backend = text_of(consumer, "backend"),
                           .domid = static_cast<uint16_t>(number_of(consumer, "domid")),
                           .devid = text_of(consumer, "devid")});
  }
  record.json = std::move(json);
  return record;
}

std::optional<InstanceRecord> Registry::read(const std::string& uuid) const {
  const std::string directory = runtime_dir_ + "/instances/" + uuid;
  struct stat st {};
  if (::lstat(directory.c_str(), &st) < 0 || !S_ISDIR(st.st_mode)) return std::nullopt;
  InstanceRecord record = parse_record(uuid, read_record(directory + "/record.json"));
  record.directory = directory;
  // The lock alone would do, if no child of the process could have it open still.
  record.alive = record.pid > 0 && RuntimeDir::alive(record.directory) &&
                 process_start_time(record.pid) == record.start_time;
  return record;
}

Result<std::vector<InstanceRecord>> Registry::list() const {
  std::vector<InstanceRecord> records;
  const std::string dir = runtime_dir_ + "/instances";
  const auto names = names_in(dir);
  if (!names && errno != ENOENT) return Error::from_errno(errno, "registry: read " + dir);
  if (!names) return records;
  for (const std::string& name : *names) {
    if (auto record = read(name)) records.push_back(std::move(*record));
  }
  return records;
}

Result<InstanceRecord> Registry::find_uuid(std::string_view uuid) const {
  const std::string wanted(uuid);
  const Error unknown(ErrorKind::kNotFound, "no instance " + wanted + " runs here");
  if (!is_name_of_instance(uuid)) return unknown;
  if (auto exact = read(wanted)) {
    if (exact->alive) return std::move(*exact);
    return Error(ErrorKind::kNotFound, "instance " + wanted + " is dead");
  }
  if (uuid.size() < kMinPrefix) return unknown;
  std::optional<InstanceRecord> found;
  for (const std::string& name :
       names_in(runtime_dir_ + "/instances").value_or(std::vector<std::string>())) {
    if (!name.starts_with(uuid)) continue;
    auto record = read(name);
    if (!record || !record->alive) continue;
    if (found)
      return Error(ErrorKind::kInvalid,
                   wanted + " may be " + found->uuid + " or " + record->uuid + ": say more of it");
    found = std::move(record);
  }
  if (!found) return unknown;
  return std::move(*found);
}

std::vector<InstanceRecord> Registry::find_key(const std::string& key) const {
  std::vector<InstanceRecord> found;
  const std::string index = runtime_dir_ + "/index/" + key;
  for (const std::string& uuid : names_in(index).value_or(std::vector<std::string>())) {
    auto record = read(uuid);
    if (record && record->alive && has_key(*record, key)) found.push_back(std::move(*record));
  }
  return found;
}

Result<std::vector<InstanceRecord>> Registry::find_image(const std::string& path,
                                                         Where where) const {
  struct stat st {};
  const int missing = ::stat(path.c_str(), &st) < 0 ? errno : 0;
  const std::string key = missing != 0          ? uri_key(path)
                          : S_ISBLK(st.st_mode) ? block_device_key(st.st_rdev)
                                                : file_key(st.st_dev, st.st_ino);
  auto found = find_key(key);
  if (missing != 0 && found.empty()) return Error::from_errno(missing, "look at " + path);
  if (where == Where::kLeaf) {
    std::erase_if(found, [&](const InstanceRecord& record) {
      return record.chain.empty() || key_of(record.chain.front()) != key;
    });
  }
  return found;
}

std::vector<InstanceRecord> Registry::find_vbd(uint16_t domid, std::string_view devid) const {
  return find_key(vbd_key(domid, devid));
}

}  // namespace vbdkit::storage
