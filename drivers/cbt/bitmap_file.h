// SPDX-License-Identifier: LGPL-2.1-or-later
//
// BitmapFile: the bitmap of changed blocks in memory and in its file (superblock.h).
//
// What is promised: whenever the file is opened again, every block that was changed since the last
// clear() is marked in it.
//  - Ended in order: exactly those.
//  - The process crashed: exactly those that a write was begun on. A new bit is in the page cache
//    before the write that it is about goes on to the disk.
//  - The system crashed (known by the kernel's boot id): all blocks of hot regions besides. Before
//    the first new bit of a region its being hot is made durable; a checkpoint, with a flush now
//    and then, makes the bitmap durable and lets the regions cool. So bits cost no wait for the
//    disk, but for one per region and checkpoint, and what a power cut adds is bounded.
// A change whose bit cannot be recorded is not made: the request fails with the file's error.
//
// The reactor's thread; opening and closing block. Owned by the filter. It does I/O only while it
// holds a request, so it may be destroyed when it holds none.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "drivers/cbt/superblock.h"
#include "drivers/dirty_bitmap.h"
#include "drivers/request_queue.h"
#include "io/reactor.h"

namespace vbdkit::drivers::cbt {

struct FileOptions {
  std::string path;
  std::string name;
  uint64_t granularity = 0;  // bytes; 0: what the file has, or 64 KiB for a new one
  bool read_only = false;
  std::chrono::milliseconds checkpoint = std::chrono::seconds(30);  // between two of them
  std::string boot_id;                                              // of this kernel
};

struct FileCounters {
  uint64_t commits = 0;      // times that new bits were written
  uint64_t superblocks = 0;  // waits for stable storage among them
  uint64_t checkpoints = 0;
};

class BitmapFile final : public DirtyBitmap {
 public:
  // A request whose blocks are recorded, or could not be.
  using Recorded = void (*)(void* owner, Request& request, int error);

  // Makes the file where it does not exist and may be written.
  static Result<std::unique_ptr<BitmapFile>> open(FileOptions options, Bytes disk_size,
                                                  io::Reactor& reactor, const Logger& log);
  ~BitmapFile();
  BitmapFile(const BitmapFile&) = delete;
  BitmapFile& operator=(const BitmapFile&) = delete;

  const std::string& name() const override { return superblock_.name; }
  uint64_t granularity() const override { return superblock_.granularity; }
  Run run_at(uint64_t offset, uint64_t end) const override;
  Result<void> keep_only(const std::vector<Range>& ranges) override;

  bool read_only() const { return options_.read_only; }
  void on_recorded(void* owner, Recorded recorded) {
    owner_ = owner;
    recorded_ = recorded;
  }
  // Whether all blocks of the range are recorded.
  bool covers(uint64_t offset, uint64_t length) const;
  // Marks them and calls back when that is recorded.
  void record(Request& request);
  // Begins a checkpoint if it is time for one, and then calls back with this request; else false.
  bool checkpoint(Request& request);
  // What a larger disk has more counts as changed.
  Result<void> resize(Bytes disk_size);

  const FileCounters& counters() const { return counters_; }

 private:
  struct PageWrite : io::FileOp {
    BitmapFile* file = nullptr;
    std::vector<iovec> pieces;
    uint64_t bytes = 0;
  };
  struct Commit : io::Deferred {
    BitmapFile* file = nullptr;
  };
  struct Sync : io::FileOp {
    BitmapFile* file = nullptr;
  };

  BitmapFile(FileOptions options, io::Reactor& reactor, const Logger& log);
  Error failed(int error, const char* what) const;
  Result<void> load(Bytes disk_size);
  Result<void> create(Bytes disk_size);
  Result<void> read_bitmap();
  Result<void> recover();
  Result<void> store_all();
  Result<void> store_superblock();
  Result<void> reserve();
  Result<void> store();

  uint64_t block_of(uint64_t offset) const { return offset / superblock_.granularity; }
  bool test(uint64_t block) const {
    return (*pages_[block / kBitsPerPage])[block % kBitsPerPage / 8] >> block % 8 & 1;
  }
  void mark(uint64_t offset, uint64_t length);
  void mark_page_dirty(size_t page);
  void fit_pages();

  void commit_soon();
  void commit();
  void write_pages();
  void write_superblock();
  void submit_write(PageWrite& write, uint64_t offset);
  PageWrite& next_write();
  void written(PageWrite& write, int64_t result);
  void committed();
  void synced(int64_t result);

  const FileOptions options_;
  io::Reactor& reactor_;
  const Logger& log_;
  Fd fd_;
  bool opened_ = false;
  Superblock superblock_;  // as it is to be written next; `hot` holds what is to be hot
  Regions stored_hot_;     // as in the file
  Regions writing_hot_;    // as in the superblock that is being written
  Regions fresh_;          // got new bits since the present checkpoint began
  std::vector<std::unique_ptr<Page>> pages_;
  // Of a page that differs from the file, or may:
  static constexpr uint8_t kDirty = 1;    // to be written by the next commit
  static constexpr uint8_t kWriting = 2;  // by the one under way
  std::vector<uint8_t> page_dirty_;       // by page: these flags
  std::vector<size_t> dirty_pages_;       // those, in no order
  std::vector<size_t> writing_pages_;     // of the commit under way

  void* owner_ = nullptr;
  Recorded recorded_ = nullptr;
  RequestQueue waiting_;     // for the next commit
  RequestQueue committing_;  // for the one under way
  Commit commit_;
  unsigned pending_ = 0;  // writes of the commit under way
  int error_ = 0;
  bool running_ = false;
  bool superblock_wanted_ = false;
  bool writing_superblock_ = false;
  bool resized_ = false;  // while a commit was under way
  std::vector<std::unique_ptr<PageWrite>> writes_;
  size_t writes_used_ = 0;
  Page superblock_page_{};

  Sync sync_;
  bool syncing_ = false;
  Request* carrier_ = nullptr;  // of the checkpoint
  std::chrono::steady_clock::time_point last_checkpoint_ = std::chrono::steady_clock::now();
  RateLimit log_limit_;
  FileCounters counters_;
};

}  // namespace vbdkit::drivers::cbt
