// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/registry_config.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "base/fd.h"

namespace vbdkit {

namespace {

constexpr off_t kMaxSize = 64 << 10;  // bytes
constexpr int64_t kShortestLease = 2;
constexpr int64_t kLongestLease = 3600;

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r";
  const size_t from = text.find_first_not_of(kBlank);
  if (from == text.npos) return {};
  return text.substr(from, text.find_last_not_of(kBlank) - from + 1);
}

// Names become parts of keys.
bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= 255 && text.front() != '.' &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                  c == '-' || c == '_' || c == '.';
         });
}

Result<RegistryConfig::Share> parse_share(std::string_view value) {
  const size_t blank = value.find_first_of(" \t");
  const std::string_view name = value.substr(0, blank);
  const std::string_view path = blank == value.npos ? "" : trimmed(value.substr(blank));
  if (!is_name(name) || path.empty() || path.front() != '/')
    return Error(ErrorKind::kInvalid, "share is NAME /PATH");
  return RegistryConfig::Share{std::string(name), std::string(path)};
}

Result<void> set(RegistryConfig& config, std::string_view key, std::string_view value) {
  struct Text {
    std::string_view name;
    std::string RegistryConfig::*member;
  };
  constexpr Text kTexts[] = {{"ca", &RegistryConfig::ca},
                             {"certificate", &RegistryConfig::certificate},
                             {"key", &RegistryConfig::key},
                             {"prefix", &RegistryConfig::prefix}};
  for (const Text& text : kTexts) {
    if (key != text.name) continue;
    config.*text.member = value;
    return {};
  }
  if (key == "endpoint") {
    config.endpoints.emplace_back(value);
  } else if (key == "host") {
    if (!is_name(value))
      return Error(ErrorKind::kInvalid, "host is letters, digits, '-', '_', '.'");
    config.host = value;
  } else if (key == "lease") {
    int64_t seconds = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), seconds);
    if (error != std::errc() || end != value.data() + value.size() || seconds < kShortestLease ||
        seconds > kLongestLease)
      return Error(ErrorKind::kInvalid, "lease is " + std::to_string(kShortestLease) + " to " +
                                            std::to_string(kLongestLease) + " seconds");
    config.lease = std::chrono::seconds(seconds);
  } else if (key == "share") {
    VBDKIT_ASSIGN(RegistryConfig::Share share, parse_share(value));
    for (const auto& other : config.shares)
      if (other.name == share.name)
        return Error(ErrorKind::kInvalid, "share " + share.name + " is there twice");
    config.shares.push_back(std::move(share));
  } else {
    return Error(ErrorKind::kInvalid,
                 "'" + std::string(key) +
                     "' is none of ca, certificate, endpoint, host, key, lease, prefix, share");
  }
  return {};
}

// Nothing where it is not there.
std::optional<std::string> canonical(const std::string& path) {
  const std::unique_ptr<char, void (*)(void*)> real(::realpath(path.c_str(), nullptr), std::free);
  if (!real) return std::nullopt;
  return std::string(real.get());
}

bool is_below(std::string_view path, std::string_view directory) {
  if (directory == "/") return true;
  return path.size() > directory.size() && path.starts_with(directory) &&
         path[directory.size()] == '/';
}

// By names alone: of another host's there is nothing here to look at.
std::optional<std::string> moved(const std::string& path,
                                 const std::vector<RegistryConfig::Share>& from,
                                 const std::vector<RegistryConfig::Share>& to) {
  const auto plain = [](const std::string& p) {
    std::string text = std::filesystem::path(p).lexically_normal().string();
    while (text.size() > 1 && text.back() == '/') text.pop_back();
    return text;
  };
  const std::string file = plain(path);
  for (const auto& share : from) {
    const std::string root = plain(share.path);
    if (!is_below(file, root)) continue;
    for (const auto& other : to)
      if (other.name == share.name)
        return plain(other.path) + (root == "/" ? file : file.substr(root.size()));
  }
  return std::nullopt;
}

bool is_mount_point(const std::string& path, const struct stat& st) {
  struct stat above {};
  return ::stat((path + "/..").c_str(), &above) == 0 && above.st_dev != st.st_dev;
}

// The device's name there.
std::optional<std::string> device_in(const std::string& directory, dev_t device) {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(directory.c_str()), ::closedir);
  if (!dir) return std::nullopt;
  std::optional<std::string> name;
  while (const dirent* entry = ::readdir(dir.get())) {
    struct stat st {};
    if (::fstatat(::dirfd(dir.get()), entry->d_name, &st, 0) != 0 || !S_ISBLK(st.st_mode) ||
        st.st_rdev != device)
      continue;
    // Of several names all hosts take the same.
    if (!name || *name > entry->d_name) name = entry->d_name;
  }
  return name;
}

}  // namespace

std::string registry_config_path() {
  const char* const path = std::getenv("VBDKIT_REGISTRY_CONF");
  return path != nullptr && *path != '\0' ? path : "/etc/vbdkit/registry.conf";
}

Result<std::optional<RegistryConfig>> RegistryConfig::load(const std::string& path) {
  const auto fd = Fd::open(path, O_RDONLY);
  if (!fd && fd.error().kind() == ErrorKind::kNotFound) return std::optional<RegistryConfig>();
  if (!fd) return fd.error();
  std::string text(kMaxSize, '\0');
  const ssize_t n = ::read(fd->get(), text.data(), text.size());
  if (n < 0) return Error::from_errno(errno, "read " + path);
  VBDKIT_ASSIGN(RegistryConfig config,
                parse(std::string_view(text).substr(0, static_cast<size_t>(n)), path));
  return std::optional<RegistryConfig>(std::move(config));
}

Result<RegistryConfig> RegistryConfig::parse(std::string_view text, const std::string& name) {
  RegistryConfig config;
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    line = trimmed(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    const size_t equals = line.find('=');
    const auto failed = [&](Error error) {
      return std::move(error).context(name + ":" + std::to_string(number));
    };
    if (equals == line.npos) return failed(Error(ErrorKind::kInvalid, "a line is KEY = VALUE"));
    const std::string_view value = trimmed(line.substr(equals + 1));
    if (value.empty()) return failed(Error(ErrorKind::kInvalid, "a line is KEY = VALUE"));
    if (auto known = vbdkit::set(config, trimmed(line.substr(0, equals)), value); !known)
      return failed(std::move(known).error());
  }
  if (config.endpoints.empty()) return Error(ErrorKind::kInvalid, name + ": no endpoint is named");
  if (config.host.empty()) {
    std::array<char, 256> host{};
    ::gethostname(host.data(), host.size() - 1);
    config.host = host.data();
    if (!is_name(config.host))
      return Error(ErrorKind::kInvalid, name + ": this host's name cannot be used; say host =");
  }
  return config;
}

std::optional<std::string> RegistryConfig::path_here(const std::string& path,
                                                     const std::vector<Share>& there) const {
  return moved(path, there, shares);
}

std::optional<std::string> RegistryConfig::path_there(const std::string& path,
                                                      const std::vector<Share>& there) const {
  std::error_code error;
  const auto absolute = std::filesystem::absolute(path, error);
  const std::vector<Share> here = roots();
  auto found = moved(error ? path : absolute.string(), here, there);
  if (found) return found;
  const auto real = canonical(path);  // by another name of the same directory
  return real ? moved(*real, here, there) : std::nullopt;
}

std::vector<RegistryConfig::Share> RegistryConfig::roots() const {
  std::vector<Share> all = shares;
  for (const Share& share : shares)
    if (auto real = canonical(share.path); real && *real != share.path)
      all.push_back({share.name, std::move(*real)});
  return all;
}

Result<std::optional<std::string>> RegistryConfig::image_at(const std::string& path) const {
  if (shares.empty()) return std::optional<std::string>();
  struct stat st {};
  const auto real = canonical(path);
  if (!real || ::stat(real->c_str(), &st) != 0) return Error::from_errno(errno, "open " + path);
  for (const Share& share : shares) {
    const auto root = canonical(share.path);
    struct stat top {};
    if (!root || ::stat(root->c_str(), &top) != 0) {
      if (is_below(path, share.path)) return Error::from_errno(errno, "share " + share.name);
      continue;
    }
    if (S_ISBLK(st.st_mode)) {
      if (const auto device = device_in(*root, st.st_rdev))
        return std::optional<std::string>(share.name + "/d" + *device);
      continue;
    }
    const bool below = is_below(*real, *root);
    if (st.st_dev == top.st_dev && (below || is_mount_point(*root, top)))
      return std::optional<std::string>(share.name + "/i" + std::to_string(st.st_ino));
    if (below && st.st_dev != top.st_dev)
      return Error(ErrorKind::kInvalid,
                   path + " is below share " + share.name + ", but on another file system");
  }
  return std::optional<std::string>();
}

}  // namespace vbdkit
