// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests: power cuts. A CrashRecorder stands for the disk an image file lies on. Its node goes
// beneath the driver under test, keeps the bytes in memory and logs every submission and completion
// of a write, discard, flush or change of size. Afterwards the state of the file after a cut at any
// event can be saved, with all that was completed or with a random choice of what no flush had made
// durable yet, torn at sectors (disk_log.h has the rules). A WriteOracle knows what a disk may read
// as after a cut. (libcrashreplay.la; used by the formats' *_crash_test.cc.) One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "drivers/disk_log.h"
#include "drivers/node.h"

namespace vbdkit::drivers {

class CrashRecorder {
 public:
  explicit CrashRecorder(SparseBytes content) : content_(content), log_(std::move(content)) {}

  // The disk's node; the recorder must outlive it.
  NodePtr node();

  bool idle() const { return in_flight_.empty(); }
  // Completes one request in flight, chosen at random; not when idle().
  void complete_one(std::mt19937_64& random);
  void complete_all(std::mt19937_64& random);
  // From now on the next `count` writes, zeroes and flushes fail with that errno.
  void fail(unsigned count, int error) {
    failures_ = count;
    failure_ = error;
  }

  // How many events there have been; a cut happens before the event of that number.
  size_t events() const { return events_; }
  // Reads, writes and so on submitted so far.
  uint64_t requests() const { return requests_; }

  using Loss = DiskLog::Loss;
  SparseBytes after_cut(size_t cut, Loss loss, std::mt19937_64& random) const {
    return log_.after_cut(cut, loss, random);
  }

 private:
  class DiskNode;
  static constexpr size_t kNone = SIZE_MAX;

  struct InFlight {
    Request* request = nullptr;
    size_t change = kNone;  // in the log; a read has none
  };

  void submit(Request& request);
  void resize(uint64_t size);

  SparseBytes content_;
  DiskLog log_;
  std::vector<InFlight> in_flight_;
  size_t events_ = 0;
  uint64_t requests_ = 0;
  unsigned failures_ = 0;
  int failure_ = 0;
};

// What a guest did with a disk, and what it may find after a cut: for every sector the content that
// the last completed flush covered, or any that was written after it.
class WriteOracle {
 public:
  // `base`: what the disk read as before.
  explicit WriteOracle(std::vector<std::byte> base);

  // A write or write-zeroes of the guest; the events are the recorder's at that time. Returns its
  // tag; fill() makes the content to write from it.
  uint64_t submitted(uint64_t offset, uint64_t length, bool zeroes, size_t event);
  void completed(uint64_t tag);
  // Likewise of a write with FUA.
  void completed_durably(uint64_t tag, size_t event);
  // A flush covers the writes that had completed when it was submitted. Events cannot tell which:
  // the disk logs no reads, so a driver may begin a flush and complete a write at the same event.
  // Returns what flushed() wants to know.
  uint64_t flush_submitted() const { return completions_; }
  void flushed(uint64_t covers, size_t event);
  static void fill(uint64_t tag, uint64_t offset, std::span<std::byte> to);

  // Empty where `disk` is allowed after a cut at that event; else what is wrong.
  std::string check(size_t cut, std::span<const std::byte> disk) const;

 private:
  struct Write {
    uint64_t offset = 0;
    uint64_t length = 0;
    bool zeroes = false;
    size_t submitted = 0;              // event
    uint64_t completion = UINT64_MAX;  // which of all completions
    size_t durable = SIZE_MAX;         // event
  };
  struct Flush {
    uint64_t covers = 0;   // completions
    size_t completed = 0;  // event
  };

  void expected(uint64_t tag, uint64_t sector, std::span<std::byte> to) const;

  std::vector<std::byte> base_;
  std::vector<Write> writes_;  // tag - 1 is the index; tag 0 is the base
  std::vector<Flush> flushes_;
  uint64_t completions_ = 0;
};

}  // namespace vbdkit::drivers
