// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests: power cuts. A CrashRecorder stands for the disk an image file lies on. Its node goes
// beneath the driver under test, keeps the bytes in memory and logs every submission and completion
// of a write, discard, flush or change of size. Afterwards the state of the file after a cut at any
// event can be saved, with all that was completed or with a random choice of what no flush had made
// durable yet, torn at sectors. A WriteOracle knows what a disk may read as after a cut.
// (libcrashreplay.la; used by the formats' *_crash_test.cc.)
//
// Rules of the simulated disk: a flush makes durable what was completed before it was submitted;
// FUA makes its own request durable; sectors of 512 bytes are written whole or not at all; a change
// of size may be lost like a write. One thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "drivers/node.h"

namespace vbdkit::drivers {

// Bytes of a sparse file.
class SparseBytes {
 public:
  static Result<SparseBytes> load(const std::string& path);
  // Makes or replaces the file.
  Result<void> save(const std::string& path) const;

  uint64_t size() const { return size_; }
  void resize(uint64_t size);
  void read(uint64_t offset, std::byte* to, size_t length) const;
  void write(uint64_t offset, const std::byte* from, size_t length);  // grows the file
  void zero(uint64_t offset, uint64_t length);                        // grows the file

 private:
  static constexpr uint64_t kPage = 4096;
  using Page = std::array<std::byte, kPage>;

  uint64_t size_ = 0;
  std::unordered_map<uint64_t, Page> pages_;  // by number; what is not here is zero
};

class CrashRecorder {
 public:
  explicit CrashRecorder(SparseBytes content) : initial_(content), content_(std::move(content)) {}

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

  enum class Loss {
    kNothing,  // all that was completed is there
    kRandom,   // what was not durable is there, or not, or in part
  };
  SparseBytes after_cut(size_t cut, Loss loss, std::mt19937_64& random) const;

 private:
  class DiskNode;
  static constexpr size_t kNever = SIZE_MAX;

  struct Record {
    Op op = Op::kWrite;
    bool resize = false;
    bool fua = false;
    uint64_t offset = 0;
    uint64_t length = 0;  // of a resize: the new size
    std::vector<std::byte> data;
    size_t submitted = 0;
    size_t completed = kNever;
  };
  struct InFlight {
    Request* request = nullptr;
    size_t record = kNever;  // index; a read has none
  };

  void submit(Request& request);
  void resize(uint64_t size);

  SparseBytes initial_;
  SparseBytes content_;
  std::deque<Record> records_;
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
