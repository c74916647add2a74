// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Image: what all parts of an open qcow2 layer share: its parameters, its file, and I/O on it for
// coroutines. Thread: the reactor of the layer. The layer owns it; it outlives the parts.
#pragma once

#include <cstdlib>
#include <memory>
#include <span>
#include <string>

#include "base/log.h"
#include "drivers/chain/layer.h"
#include "drivers/node.h"
#include "drivers/qcow2/async.h"
#include "drivers/qcow2/layout.h"
#include "drivers/qcow2/metadata_file.h"

namespace vbdkit::drivers::qcow2 {

// Memory that direct I/O takes as it is. Not initialised.
class Buffer {
 public:
  static constexpr size_t kAlignment = 4096;

  Buffer() = default;
  explicit Buffer(size_t size)
      : data_(static_cast<uint8_t*>(aligned_alloc(kAlignment, align_up(size, kAlignment)))),
        size_(size) {
    if (data_ == nullptr) abort();
  }
  uint8_t* data() const { return data_.get(); }
  size_t size() const { return size_; }
  std::span<uint8_t> span() const { return {data_.get(), size_}; }

 private:
  struct Free {
    void operator()(uint8_t* p) const { free(p); }
  };
  std::unique_ptr<uint8_t, Free> data_;
  size_t size_ = 0;
};

// One request to a node (or to what lies beneath a leaf), awaited: the result is its errno or 0.
// Lives in the awaiting coroutine.
class NodeIo : private Request {
 public:
  NodeIo(ReadyQueue& ready, Node& node, Op kind, uint64_t at, uint64_t size, const iovec* vector,
         uint32_t count, uint8_t how = 0)
      : ready_(ready), node_(&node) {
    prepare(kind, at, size, vector, count, how);
  }
  // Flat memory.
  NodeIo(ReadyQueue& ready, Node& node, Op kind, uint64_t at, std::span<uint8_t> memory)
      : ready_(ready), node_(&node), flat_{memory.data(), memory.size()} {
    prepare(kind, at, memory.size(), &flat_, 1, 0);
  }
  NodeIo(ReadyQueue& ready, ParentReader& below, uint64_t at, std::span<uint8_t> memory)
      : ready_(ready), below_(&below), flat_{memory.data(), memory.size()} {
    prepare(Op::kRead, at, memory.size(), &flat_, 1, 0);
  }
  NodeIo(const NodeIo&) = delete;
  NodeIo& operator=(const NodeIo&) = delete;

  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> h) {
    submitting_ = true;
    if (node_ != nullptr)
      node_->submit(*this);
    else
      below_->read_below(*this);
    submitting_ = false;
    waiting_ = h;
    return !finished_;
  }
  int await_resume() const noexcept { return error_; }

 private:
  void prepare(Op kind, uint64_t at, uint64_t size, const iovec* vector, uint32_t count,
               uint8_t how) {
    op = kind;
    flags = how;
    offset = at;
    length = size;
    iov = vector;
    iov_count = count;
    done = [](Request& request, int error) {
      NodeIo& self = static_cast<NodeIo&>(request);
      self.error_ = error;
      self.finished_ = true;
      if (self.submitting_) return;
      ReadyQueue::Scope scope(self.ready_);
      self.waiting_.resume();
    };
  }

  ReadyQueue& ready_;
  Node* node_ = nullptr;
  ParentReader* below_ = nullptr;
  iovec flat_{};
  std::coroutine_handle<> waiting_;
  int error_ = 0;
  bool submitting_ = false;
  bool finished_ = false;
};

class Image {
 public:
  Image(Header head, MetadataFile metadata, NodePtr node, const Logger& logger, bool readonly)
      : header(std::move(head)),
        g(header.geometry),
        blocking(std::move(metadata)),
        file(std::move(node)),
        log(logger),
        read_only(readonly) {}

  Header header;
  const Geometry g;
  MetadataFile blocking;
  NodePtr file;
  const Logger& log;
  const bool read_only;
  ReadyQueue ready;
  bool corrupt = false;  // found while running: no more writes

  const std::string& path() const { return blocking.path(); }

  // The file's size, for what reaches up to `end`: looked at again where that is beyond what is
  // known, as a coalescer may be adding to a parent.
  uint64_t size_for(uint64_t end) const {
    if (read_only && end > file->info().size.v)
      if (const auto looked = file->refresh_size(); !looked)
        log.error("%s", looked.error().message().c_str());
    return file->info().size.v;
  }

  NodeIo read(uint64_t offset, std::span<uint8_t> to) {
    return {ready, *file, Op::kRead, offset, to};
  }
  NodeIo read(uint64_t offset, uint64_t length, std::span<const iovec> iov) {
    return {ready, *file, Op::kRead, offset, length, iov.data(), static_cast<uint32_t>(iov.size())};
  }
  NodeIo write(uint64_t offset, std::span<uint8_t> from) {
    return {ready, *file, Op::kWrite, offset, from};
  }
  NodeIo write(uint64_t offset, uint64_t length, std::span<const iovec> iov) {
    return {
        ready, *file, Op::kWrite, offset, length, iov.data(), static_cast<uint32_t>(iov.size())};
  }
  NodeIo zero(uint64_t offset, uint64_t length) {
    return {ready, *file, Op::kWriteZeroes, offset, length, nullptr, 0, kMayUnmap};
  }
  NodeIo discard(uint64_t offset, uint64_t length) {
    return {ready, *file, Op::kDiscard, offset, length, nullptr, 0};
  }
  NodeIo flush() { return {ready, *file, Op::kFlush, 0, 0, nullptr, 0}; }

  // Brings the fields of the file's header that change to what `header` says; not durable yet.
  Task<int> write_header();

  // The metadata contradicts itself: says so, and sets the image's corrupt bit. EIO.
  int mark_corrupt(const std::string& what);
};

// The file node of a layer that ends: every request is done when submit() returns.
NodePtr make_blocking_node(MetadataFile& file);

}  // namespace vbdkit::drivers::qcow2
