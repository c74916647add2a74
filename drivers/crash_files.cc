// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/crash_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <utility>

#include "drivers/iov.h"

// What the linker makes of calls and functions with --wrap=NAME (ld(1)).
// NOLINTBEGIN(bugprone-reserved-identifier,readability-identifier-naming)
extern "C" {
ssize_t __real_pwrite(int fd, const void* from, size_t length, off_t offset);
int __real_ftruncate(int fd, off_t length);
int __real_fdatasync(int fd);
int __real_fsync(int fd);
int __real_link(const char* from, const char* to);
int __real_rename(const char* from, const char* to);
int __real_unlink(const char* path);
}

namespace vbdkit::drivers {

namespace {

using Change = DiskLog::Change;
using Kind = DiskLog::Change::Kind;

std::atomic<CrashFiles*> recording{nullptr};

template <typename Call>
auto logged(int fd, Change change, Call call) {
  CrashFiles* const files = CrashFiles::current();
  if (files == nullptr) return call();
  const auto ticket = files->begun(fd, std::move(change));
  const auto result = call();
  if (result >= 0) files->completed(ticket);
  return result;
}

int named(CrashFiles::NameChange what, const char* from, const char* to, int result) {
  if (CrashFiles* const files = CrashFiles::current(); files != nullptr && result == 0)
    files->renamed(what, from, to);
  return result;
}

}  // namespace

extern "C" {

ssize_t __wrap_pwrite(int fd, const void* from, size_t length, off_t offset) {
  Change change{.kind = Kind::kWrite, .offset = static_cast<uint64_t>(offset), .length = length};
  const auto* const bytes = static_cast<const std::byte*>(from);
  change.data.assign(bytes, bytes + length);
  return logged(fd, std::move(change), [&] { return __real_pwrite(fd, from, length, offset); });
}

int __wrap_ftruncate(int fd, off_t length) {
  return logged(fd, {.kind = Kind::kResize, .length = static_cast<uint64_t>(length)},
                [&] { return __real_ftruncate(fd, length); });
}

int __wrap_fdatasync(int fd) {
  return logged(fd, {.kind = Kind::kFlush}, [&] { return __real_fdatasync(fd); });
}

int __wrap_fsync(int fd) {
  return logged(fd, {.kind = Kind::kFlush}, [&] { return __real_fsync(fd); });
}

int __wrap_link(const char* from, const char* to) {
  return named(CrashFiles::NameChange::kLink, from, to, __real_link(from, to));
}

int __wrap_rename(const char* from, const char* to) {
  return named(CrashFiles::NameChange::kRename, from, to, __real_rename(from, to));
}

int __wrap_unlink(const char* path) {
  return named(CrashFiles::NameChange::kUnlink, path, "", __real_unlink(path));
}

}  // extern "C"
// NOLINTEND(bugprone-reserved-identifier,readability-identifier-naming)

struct CrashFiles::Passed : io::FileOp {
  CrashFiles* files = nullptr;
  io::FileOp* origin = nullptr;
  Ticket ticket;
};

CrashFiles* CrashFiles::current() { return recording; }

Result<std::unique_ptr<CrashFiles>> CrashFiles::record(io::Reactor& inner, std::string directory,
                                                       uint64_t seed) {
  std::unique_ptr<CrashFiles> files(new CrashFiles(inner, std::move(directory), seed));
  VBDKIT_TRY(files->load());
  recording = files.get();
  return files;
}

CrashFiles::CrashFiles(io::Reactor& inner, std::string directory, uint64_t seed)
    : inner_(inner), directory_(std::move(directory)), random_(seed) {}

CrashFiles::~CrashFiles() { end(); }

void CrashFiles::end() { recording = nullptr; }

Result<void> CrashFiles::load() {
  struct stat st {};
  if (::stat(directory_.c_str(), &st) != 0) return Error::from_errno(errno, "open " + directory_);
  directory_inode_ = st.st_ino;
  logs_.emplace(st.st_ino, SparseBytes());
  for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
    const std::string path = entry.path();
    if (::stat(path.c_str(), &st) != 0) return Error::from_errno(errno, "open " + path);
    VBDKIT_ASSIGN(SparseBytes content, SparseBytes::load(path));
    names_.emplace(entry.path().filename(), st.st_ino);
    logs_.emplace(st.st_ino, std::move(content));
  }
  return {};
}

size_t CrashFiles::events() const {
  const std::lock_guard lock(mutex_);
  return events_;
}

std::vector<size_t> CrashFiles::name_events() const {
  std::vector<size_t> events;
  for (const NameStep& step : steps_) events.push_back(step.event);
  return events;
}

CrashFiles::Ticket CrashFiles::begun(int fd, Change change) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) return {};
  const std::lock_guard lock(mutex_);
  const auto log = logs_.find(st.st_ino);
  if (log == logs_.end()) return {};
  change.submitted = events_++;
  return {st.st_ino, log->second.add(std::move(change))};
}

void CrashFiles::completed(const Ticket& ticket) {
  if (ticket.change == kNone) return;
  const std::lock_guard lock(mutex_);
  logs_.at(ticket.file).completed(ticket.change, events_++);
}

// Empty where it is in another.
std::string CrashFiles::in_directory(const std::string& path) const {
  const std::filesystem::path name(path);
  return name.parent_path() == directory_ ? name.filename().string() : std::string();
}

void CrashFiles::renamed(NameChange what, const std::string& from, const std::string& to) {
  const std::string name = in_directory(from);
  if (name.empty()) return;
  const std::lock_guard lock(mutex_);
  steps_.push_back({what, name, in_directory(to), events_++});
}

void CrashFiles::submit(io::FileOp& op) {
  using OpKind = io::FileOp::Kind;
  if (op.kind == OpKind::kRead || current() != this) return inner_.submit(op);
  Change change{.kind = Kind::kFlush, .offset = op.offset, .length = op.length};
  if (op.kind == OpKind::kWrite) {
    change.kind = Kind::kWrite;
    change.fua = (op.rw_flags & (RWF_DSYNC | RWF_SYNC)) != 0;
    change.length = 0;
    for (uint32_t i = 0; i < op.iov_count; ++i) change.length += op.iov[i].iov_len;
    change.data.resize(change.length);
    copy_from_iov(op.iov, 0, reinterpret_cast<char*>(change.data.data()), change.length);
  } else if (op.kind == OpKind::kFallocate) {
    change.kind = Kind::kZero;
    change.keeps_size = (op.fallocate_mode & FALLOC_FL_KEEP_SIZE) != 0;
  }
  auto passed = std::make_unique<Passed>();
  static_cast<io::FileOp&>(*passed) = op;
  passed->files = this;
  passed->origin = &op;
  passed->ticket = begun(op.fd, std::move(change));
  passed->done = [](io::FileOp& done, int64_t result) {
    std::unique_ptr<Passed> back(static_cast<Passed*>(&done));
    CrashFiles& files = *back->files;
    files.came_back(std::move(back), result);
  };
  inner_.submit(*passed.release());
}

// Some come later than they could, and so in another order.
void CrashFiles::came_back(std::unique_ptr<Passed> passed, int64_t result) {
  if (random_() % 2 == 0) {
    inner_.post([this, held = std::make_shared<std::unique_ptr<Passed>>(std::move(passed)),
                 result] { came_back(std::move(*held), result); });
    return;
  }
  if (result >= 0) completed(passed->ticket);
  passed->origin->done(*passed->origin, result);
}

CrashFiles::Names CrashFiles::names_after_cut(size_t cut, Loss loss,
                                              std::mt19937_64& random) const {
  Names names = names_;
  const size_t durable = logs_.at(directory_inode_).durable_until(cut);
  for (const NameStep& step : steps_) {
    if (step.event >= cut) break;
    if (step.event >= durable && loss == Loss::kRandom && random() % 2 == 0) continue;
    const auto from = names.find(step.from);
    if (from == names.end()) continue;
    const ino_t file = from->second;
    if (step.what != NameChange::kLink) names.erase(from);
    if (step.what != NameChange::kUnlink && !step.to.empty()) names[step.to] = file;
  }
  return names;
}

Result<void> CrashFiles::put_after_cut(size_t cut, Loss loss, std::mt19937_64& random) const {
  // What was never changed is there as it was.
  const auto untouched = [&](const std::string& name) {
    const auto found = names_.find(name);
    return found != names_.end() && logs_.at(found->second).empty();
  };
  for (const auto& entry : std::filesystem::directory_iterator(directory_))
    if (!untouched(entry.path().filename())) std::filesystem::remove(entry.path());
  std::map<ino_t, std::string> saved;
  for (const auto& [name, file] : names_after_cut(cut, loss, random)) {
    if (untouched(name)) continue;
    const std::string path = directory_ + "/" + name;
    const auto [first, fresh] = saved.try_emplace(file, path);
    if (fresh)
      VBDKIT_TRY(logs_.at(file).after_cut(cut, loss, random).save(path));
    else
      std::filesystem::create_hard_link(first->second, path);
  }
  return {};
}

}  // namespace vbdkit::drivers
