// SPDX-License-Identifier: LGPL-2.1-or-later
//
// BitmapFile: how new bits get into the file while the disk runs. What was marked in one turn of
// the loop, or while a commit was under way, is committed together.
#include <algorithm>
#include <climits>
#include <cstring>
#include <utility>

#include "drivers/cbt/bitmap_file.h"

namespace vbdkit::drivers::cbt {

void BitmapFile::record(Request& request) {
  mark(request.offset, request.length);
  waiting_.push(request);
  commit_soon();
}

void BitmapFile::commit_soon() {
  if (!running_) reactor_.defer(commit_);
}

void BitmapFile::commit() {
  if (running_) return;
  running_ = true;
  ++counters_.commits;
  error_ = 0;
  pending_ = 1;
  writes_used_ = 0;
  while (!waiting_.empty()) committing_.push(waiting_.pop());
  write_pages();
  const bool newly_hot = (superblock_.hot & ~stored_hot_).any();
  writing_superblock_ = newly_hot || std::exchange(superblock_wanted_, false);
  if (writing_superblock_) write_superblock();
  if (--pending_ == 0) committed();
}

// Neighbouring pages go together.
void BitmapFile::write_pages() {
  std::swap(writing_pages_, dirty_pages_);
  std::sort(writing_pages_.begin(), writing_pages_.end());
  for (size_t i = 0; i < writing_pages_.size();) {
    PageWrite& write = next_write();
    const size_t first = writing_pages_[i];
    for (; i < writing_pages_.size() && writing_pages_[i] == first + write.pieces.size() &&
           write.pieces.size() < IOV_MAX;
         ++i) {
      const size_t page = writing_pages_[i];
      page_dirty_[page] = kWriting;
      write.pieces.push_back({pages_[page]->data(), kPageSize});
    }
    write.rw_flags = 0;
    write.copies_only = true;
    submit_write(write, kBitmapOffset + first * kPageSize);
  }
}

void BitmapFile::write_superblock() {
  ++counters_.superblocks;
  ++superblock_.sequence;
  writing_hot_ = superblock_.hot;
  encode(superblock_, superblock_page_);
  PageWrite& write = next_write();
  write.pieces.push_back({superblock_page_.data(), kPageSize});
  write.rw_flags = RWF_DSYNC;
  write.copies_only = false;
  submit_write(write, superblock_.sequence % 2 * kPageSize);
}

BitmapFile::PageWrite& BitmapFile::next_write() {
  if (writes_used_ == writes_.size()) writes_.push_back(std::make_unique<PageWrite>());
  PageWrite& write = *writes_[writes_used_++];
  write.pieces.clear();
  return write;
}

void BitmapFile::submit_write(PageWrite& write, uint64_t offset) {
  write.file = this;
  write.kind = io::FileOp::Kind::kWrite;
  write.fd = fd_.get();
  write.iov = write.pieces.data();
  write.iov_count = static_cast<uint32_t>(write.pieces.size());
  write.offset = offset;
  write.bytes = write.pieces.size() * kPageSize;
  write.done = [](io::FileOp& op, int64_t result) {
    auto& w = static_cast<PageWrite&>(op);
    w.file->written(w, result);
  };
  ++pending_;
  reactor_.submit(write);
}

void BitmapFile::written(PageWrite& write, int64_t result) {
  if (result == -EINTR || result == -EAGAIN) {
    reactor_.submit(write);
    return;
  }
  if (result < 0)
    error_ = static_cast<int>(-result);
  else if (static_cast<uint64_t>(result) != write.bytes)
    error_ = EIO;
  if (--pending_ == 0) committed();
}

void BitmapFile::committed() {
  for (const size_t page : writing_pages_) {
    page_dirty_[page] &= static_cast<uint8_t>(~kWriting);
    if (error_ != 0) mark_page_dirty(page);
  }
  writing_pages_.clear();
  if (error_ != 0) {
    // The slot may be damaged; the next attempt must not take the other, which is good.
    if (writing_superblock_) --superblock_.sequence;
    superblock_wanted_ = true;
    log_.limited(log_limit_, LogLevel::kError, "cbt: write %s: %s; the changes are refused",
                 options_.path.c_str(), strerror(error_));
  } else if (writing_superblock_) {
    stored_hot_ = writing_hot_;
  }
  if (std::exchange(resized_, false)) stored_hot_.reset();
  running_ = false;
  const int error = error_;
  // A request that goes on may complete at once and bring another, which waits for the next commit.
  while (!committing_.empty()) recorded_(owner_, committing_.pop(), error);
  if (!waiting_.empty()) commit_soon();
}

// Makes the bitmap durable; then the regions that got no new bit meanwhile may cool.
bool BitmapFile::checkpoint(Request& request) {
  const auto now = std::chrono::steady_clock::now();
  if (now < last_checkpoint_ + options_.checkpoint || stored_hot_.none()) return false;
  if (syncing_ || running_ || !dirty_pages_.empty()) return false;
  last_checkpoint_ = now;
  ++counters_.checkpoints;
  fresh_.reset();
  syncing_ = true;
  carrier_ = &request;
  sync_.fd = fd_.get();
  reactor_.submit(sync_);
  return true;
}

void BitmapFile::synced(int64_t result) {
  syncing_ = false;
  if (result < 0) {
    log_.limited(log_limit_, LogLevel::kError, "cbt: sync %s: %s", options_.path.c_str(),
                 strerror(static_cast<int>(-result)));
  } else {
    superblock_.hot = fresh_;
    superblock_wanted_ = true;
  }
  waiting_.push(*carrier_);
  commit_soon();
}

}  // namespace vbdkit::drivers::cbt
