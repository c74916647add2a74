// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests: power cuts that several files of a directory go through together, and their names. A
// CrashFiles is the reactor of what works on the files: it logs their operations in one order, and
// hands them on to a real reactor. What is done beside a reactor is logged too, as the program is
// linked so that these calls come here first (--wrap=pwrite and so on). Afterwards the directory
// after a cut at any event can be put in its place. (disk_log.h has the rules of files.)
//
// Rules of names: a link, rename or unlink is durable when the directory was flushed after it;
// until then each of them may be there or not, whichever of the files' bytes are. A flush of a file
// says nothing of any name, nor of any other file.
//
// Thread: the reactor's; calls beside it come from any. One at a time.
#pragma once

#include <sys/types.h>

#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "base/result.h"
#include "drivers/disk_log.h"
#include "io/reactor.h"

namespace vbdkit::drivers {

class CrashFiles final : public io::Reactor {
 public:
  using Loss = DiskLog::Loss;

  // From here on. `seed`: of the order in which operations come back.
  static Result<std::unique_ptr<CrashFiles>> record(io::Reactor& inner, std::string directory,
                                                    uint64_t seed);
  ~CrashFiles() override;
  // Nothing is logged any more.
  void end();

  size_t events() const;
  // The directory gets other files: those after a cut before that event. After end().
  Result<void> put_after_cut(size_t cut, Loss loss, std::mt19937_64& random) const;
  // Events at which a name changed, for who looks closer there.
  std::vector<size_t> name_events() const;

  // For the calls that come here first; nullptr: none records.
  static CrashFiles* current();
  // Of a file's change or flush, which is not done yet; kNone where it is none of these files.
  static constexpr size_t kNone = SIZE_MAX;
  struct Ticket {
    ino_t file = 0;
    size_t change = kNone;
  };
  Ticket begun(int fd, DiskLog::Change change);
  void completed(const Ticket& ticket);
  // Done already. `to` of an unlink is empty.
  enum class NameChange { kLink, kRename, kUnlink };
  void renamed(NameChange what, const std::string& from, const std::string& to);

  Result<void> run() override { return inner_.run(); }
  void submit(io::FileOp& op) override;
  void submit(io::SocketOp& op) override { inner_.submit(op); }
  void defer(io::Deferred& d) override { inner_.defer(d); }
  std::unique_ptr<io::FdWatch> watch(int fd, std::function<void()> readable) override {
    return inner_.watch(fd, std::move(readable));
  }
  std::unique_ptr<io::Timer> timer(std::function<void()> expired) override {
    return inner_.timer(std::move(expired));
  }
  void post(std::function<void()> task) override { inner_.post(std::move(task)); }
  void stop() override { inner_.stop(); }
  const char* engine_name() const override { return inner_.engine_name(); }
  const io::ReactorCounters& counters() const override { return inner_.counters(); }

 private:
  struct Passed;
  struct NameStep {
    NameChange what = NameChange::kLink;
    std::string from;
    std::string to;
    size_t event = 0;
  };
  using Names = std::map<std::string, ino_t>;

  CrashFiles(io::Reactor& inner, std::string directory, uint64_t seed);
  Result<void> load();
  Names names_after_cut(size_t cut, Loss loss, std::mt19937_64& random) const;
  std::string in_directory(const std::string& path) const;
  void came_back(std::unique_ptr<Passed> passed, int64_t result);

  io::Reactor& inner_;
  const std::string directory_;
  mutable std::mutex mutex_;  // all that follows
  std::mt19937_64 random_;
  size_t events_ = 0;
  ino_t directory_inode_ = 0;
  Names names_;                    // at first
  std::map<ino_t, DiskLog> logs_;  // with that of the directory, of which only flushes count
  std::vector<NameStep> steps_;
};

}  // namespace vbdkit::drivers
