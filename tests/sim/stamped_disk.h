// SPDX-License-Identifier: LGPL-2.1-or-later
//
// StampedDisk: what a disk holds that one writer writes, and what copies of it may hold. Each write
// has a stamp, in the order in which writes were begun, and each sector tells disk, place and
// stamp; so it can be said of any copy whether it is the disk of one moment: it has nothing that
// was not written, and of what was answered before its newest write was begun, it has everything.
//
// Threads: any; all calls lock. Writes that overlap are not begun.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

namespace vbdkit::sim {

class StampedDisk {
 public:
  static constexpr size_t kSector = 512;  // bytes

  // The base that disks have in common: half of it zeroes.
  static std::vector<std::byte> base(uint64_t sectors);

  // `id`: not 0. To begin with it holds what base() does.
  StampedDisk(uint64_t sectors, uint64_t id);
  uint64_t sectors() const { return sectors_; }

  // A write or, with `zero`, a write of zeroes is begun; its stamp.
  uint64_t begin(uint64_t sector, uint64_t count, bool zero);
  void end(uint64_t stamp);
  void fill(uint64_t stamp, uint64_t sector, std::span<std::byte> data) const;
  // What was read while nobody wrote there; the first that is wrong, if any.
  std::optional<std::string> wrong(uint64_t sector, std::span<const std::byte> data) const;

  // A time that begins. While it exists, all is remembered that was written since.
  class Since;
  std::unique_ptr<Since> since();
  // Whether it is the disk of one moment of that time.
  std::optional<std::string> wrong_copy(const Since& since, std::span<const std::byte> copy) const;

  // A flush that began at that time has been answered.
  void flushed(std::unique_ptr<Since> at);
  // Who serves it is killed now: until recover(), nobody knows what it holds.
  void crash();
  // After a crash: what was written since the last flush may be there or not. Takes what is there,
  // and tells what cannot be.
  std::optional<std::string> recover(std::span<const std::byte> content);

 private:
  using Value = uint64_t;  // stamp * 2, + 1 where it is zeroes
  struct Write {
    uint64_t sector = 0;
    uint64_t count = 0;
    bool zero = false;
    bool answered = false;
    uint64_t floor = 0;  // all writes up to this one were answered when it was begun
  };
  struct Found;

  Found look(uint64_t sector, const std::byte* data) const;
  bool is(Value value, const Found& found) const;
  uint64_t oldest_in_flight() const;
  void forget();
  std::optional<std::string> misfit(const Since& since, std::span<const std::byte> content,
                                    bool ordered, std::vector<Value>* taken) const;

  const uint64_t sectors_;
  const uint64_t id_;
  mutable std::mutex mutex_;
  std::vector<Value> values_;  // answered
  std::map<uint64_t, Write> log_;
  std::set<uint64_t> in_flight_;
  std::multiset<uint64_t> remembered_;  // first stamps
  uint64_t next_ = 2;                   // 1 is the base's
  uint64_t crashes_ = 0;
  bool crashed_ = false;  // and not recovered
  std::unique_ptr<Since> last_flush_;
};

class StampedDisk::Since {
 public:
  ~Since();
  Since(const Since&) = delete;
  Since& operator=(const Since&) = delete;

 private:
  friend class StampedDisk;
  explicit Since(StampedDisk& disk) : disk_(disk) {}
  StampedDisk& disk_;
  std::vector<Value> values_;
  uint64_t first_ = 0;
  uint64_t crashes_ = 0;
  bool crashed_ = false;
};

}  // namespace vbdkit::sim
