// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/runtime_dir.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

namespace vbdkit {

namespace {

constexpr std::array kFiles = {"pid",      "record.json", "record.json.new", "keys",
                               "keys.new", "qmp.sock",    "nbd.sock"};
constexpr size_t kMaxKeys = 1 << 20;  // bytes of a file with keys

// An open-file-description lock: asking for it (F_OFD_GETLK) disturbs nobody who takes it.
struct flock whole_file() {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return lock;
}

Result<void> write_all(int fd, std::string_view text, const std::string& what) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Error::from_errno(errno, "write " + what);
    text.remove_prefix(static_cast<size_t>(n));
  }
  return {};
}

// Of …/instances/<uuid>: the directory of the index, and the uuid.
struct Place {
  std::string index;
  std::string uuid;
};

std::optional<Place> place_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == path.npos || slash + 1 == path.size()) return std::nullopt;
  const std::string_view parent = std::string_view(path).substr(0, slash);
  constexpr std::string_view kInstances = "/instances";
  if (!parent.ends_with(kInstances)) return std::nullopt;
  return Place{std::string(parent.substr(0, parent.size() - kInstances.size())) + "/index",
               path.substr(slash + 1)};
}

// What a dead instance wrote, which need not be what it should have written.
std::vector<std::string> read_keys(const std::string& path) {
  const auto fd = Fd::open(path + "/keys", O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  struct stat st {};
  if (!fd || ::fstat(fd->get(), &st) < 0 || !S_ISREG(st.st_mode) || st.st_size <= 0 ||
      st.st_size > static_cast<off_t>(kMaxKeys))
    return {};
  std::string text(static_cast<size_t>(st.st_size), '\0');
  const ssize_t n = ::read(fd->get(), text.data(), text.size());
  text.resize(n > 0 ? static_cast<size_t>(n) : 0);
  std::vector<std::string> keys;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string key = text.substr(at, end - at);
    if (!key.empty() && key.find('/') == key.npos && key != "." && key != "..") keys.push_back(key);
    at = end + 1;
  }
  return keys;
}

}  // namespace

std::string RuntimeDir::registry_of(const std::string& path) {
  const auto place = place_of(path);
  if (!place) return "/run/vbdkit";
  return place->index.substr(0, place->index.rfind('/'));
}

Result<RuntimeDir> RuntimeDir::claim(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) < 0 && errno != EEXIST)
    return Error::from_errno(errno, "mkdir " + path);
  VBDKIT_ASSIGN(Fd dir, Fd::open(path, O_PATH | O_DIRECTORY));
  const std::string pid_file = path + "/pid";
  VBDKIT_ASSIGN(Fd lock, Fd::open(pid_file, O_RDWR | O_CREAT, 0600));
  struct flock whole = whole_file();
  if (::fcntl(lock.get(), F_OFD_SETLK, &whole) < 0) {
    if (errno != EAGAIN) return Error::from_errno(errno, "lock " + pid_file);
    return Error(ErrorKind::kBusy, path + ": another instance lives there", EBUSY);
  }
  if (::ftruncate(lock.get(), 0) < 0) return Error::from_errno(errno, "truncate " + pid_file);
  VBDKIT_TRY(write_all(lock.get(), std::to_string(::getpid()) + "\n", pid_file));
  std::optional<RegistryIndex> index;
  if (const auto place = place_of(path)) {
    VBDKIT_ASSIGN(index, RegistryIndex::open(place->index, place->uuid));
  }
  return RuntimeDir(path, std::move(dir), std::move(lock), std::move(index));
}

RuntimeDir::RuntimeDir(RuntimeDir&& o) noexcept
    : path_(std::exchange(o.path_, {})),
      dir_(std::move(o.dir_)),
      lock_(std::move(o.lock_)),
      index_(std::move(o.index_)) {}

RuntimeDir::~RuntimeDir() {
  if (path_.empty()) return;
  for (const char* name : kFiles) ::unlinkat(dir_.get(), name, 0);
  ::rmdir(path_.c_str());
  if (index_) index_->keep_only({});
}

Result<void> RuntimeDir::write_record(std::string_view json, const std::set<std::string>& keys) {
  if (!index_) return replace("record.json", json);
  // The file names every link that there may be, whenever we are killed.
  const auto list = [this](const std::set<std::string>& all) {
    std::string text;
    for (const std::string& key : all) text += key + "\n";
    return replace("keys", text);
  };
  if (keys != index_->keys()) {
    std::set<std::string> both = index_->keys();
    both.insert(keys.begin(), keys.end());
    VBDKIT_TRY(list(both));
    VBDKIT_TRY(index_->add(keys));
  }
  VBDKIT_TRY(replace("record.json", json));
  if (keys != index_->keys()) {
    index_->keep_only(keys);
    VBDKIT_TRY(list(keys));
  }
  return {};
}

Result<void> RuntimeDir::replace(const std::string& name, std::string_view text) const {
  const std::string next = name + ".new";
  const Fd fd(::openat(dir_.get(), next.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd.valid()) return Error::from_errno(errno, "open " + file(next));
  VBDKIT_TRY(write_all(fd.get(), text, file(next)));
  if (::renameat(dir_.get(), next.c_str(), dir_.get(), name.c_str()) < 0)
    return Error::from_errno(errno, "rename " + file(next));
  return {};
}

Result<void> RuntimeDir::change_owner(uid_t uid, gid_t gid) const {
  if (::chown(path_.c_str(), uid, gid) < 0) return Error::from_errno(errno, "chown " + path_);
  for (const char* name : kFiles) {
    if (::lchown(file(name).c_str(), uid, gid) < 0 && errno != ENOENT)
      return Error::from_errno(errno, "chown " + file(name));
  }
  if (index_) index_->change_owner(uid, gid);
  return {};
}

bool RuntimeDir::alive(const std::string& path) {
  const auto lock = Fd::open(path + "/pid", O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  struct flock whole = whole_file();
  return lock && ::fcntl(lock->get(), F_OFD_GETLK, &whole) == 0 && whole.l_type != F_UNLCK;
}

void RuntimeDir::clean(const std::string& path) {
  if (const auto place = place_of(path)) {
    if (const auto index = Fd::open(place->index, O_PATH | O_DIRECTORY | O_NOFOLLOW)) {
      for (const std::string& key : read_keys(path))
        RegistryIndex::remove(index->get(), key, place->uuid);
    }
  }
  for (const char* name : kFiles) ::unlink((path + "/" + name).c_str());
  ::rmdir(path.c_str());
}

}  // namespace vbdkit
