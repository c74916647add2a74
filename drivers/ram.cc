// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ram: a disk in anonymous memory that is gone with the instance. Memory is used only for what was
// written and not discarded since: chunks that hold nothing are known by a bitmap, so that reading
// them touches no page.
#include <sys/mman.h>

#include <algorithm>
#include <vector>

#include "drivers/drivers.h"
#include "drivers/iov.h"
#include "drivers/memory_leaf.h"

namespace vbdkit::drivers {
namespace {

constexpr uint64_t kChunk = 64 * 1024;  // bytes

// An anonymous mapping.
class Mapping {
 public:
  Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (base_ != nullptr) munmap(base_, length_);
  }

  char* base() const { return base_; }

  Result<void> resize(size_t length) {
    void* p = base_ == nullptr ? mmap(nullptr, length, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
                               : mremap(base_, length_, length, MREMAP_MAYMOVE);
    if (p == MAP_FAILED)
      return Error::from_errno(errno, "ram: map " + std::to_string(length) + " bytes");
    base_ = static_cast<char*>(p);
    length_ = length;
    return {};
  }

 private:
  char* base_ = nullptr;
  size_t length_ = 0;
};

class RamNode final : public MemoryLeaf {
 public:
  RamNode(NodeSpec spec, const OpenContext& context) : MemoryLeaf(std::move(spec), context) {}

  void block_status(StatusRequest& request) override;

 private:
  int execute(const Request& request) override;
  Result<void> set_size(Bytes size) override;

  // Calls fn(offset, length) for [offset, offset + length) cut at chunk borders.
  template <typename Fn>
  static void for_each_chunk(uint64_t offset, uint64_t length, Fn fn) {
    while (length > 0) {
      const uint64_t n = std::min(length, kChunk - offset % kChunk);
      fn(offset, n);
      offset += n;
      length -= n;
    }
  }

  void read(const Request& request) const;
  void write(const Request& request);
  void zero(uint64_t offset, uint64_t length);

  Mapping memory_;
  std::vector<bool> used_;  // by chunk; what is not used is zero
};

void RamNode::read(const Request& request) const {
  for_each_chunk(request.offset, request.length, [&](uint64_t at, uint64_t n) {
    if (used_[at / kChunk])
      copy_to_iov(request.iov, at - request.offset, memory_.base() + at, n);
    else
      zero_iov(request.iov, at - request.offset, n);
  });
}

void RamNode::write(const Request& request) {
  for_each_chunk(request.offset, request.length, [&](uint64_t at, uint64_t n) {
    used_[at / kChunk] = true;
    copy_from_iov(request.iov, at - request.offset, memory_.base() + at, n);
  });
}

void RamNode::zero(uint64_t offset, uint64_t length) {
  for_each_chunk(offset, length, [&](uint64_t at, uint64_t n) {
    if (!used_[at / kChunk]) return;
    char* const chunk = memory_.base() + at;
    // Memory given back reads as zeroes. Where the kernel keeps it (locked pages), it is cleared.
    if (n == kChunk && madvise(chunk, n, MADV_DONTNEED) == 0)
      used_[at / kChunk] = false;
    else
      memset(chunk, 0, n);
  });
}

int RamNode::execute(const Request& request) {
  switch (request.op) {
    case Op::kRead:
      read(request);
      break;
    case Op::kWrite:
      write(request);
      break;
    case Op::kDiscard:
    case Op::kWriteZeroes:
      zero(request.offset, request.length);
      break;
    case Op::kFlush:
    case Op::kCopy:
      break;
  }
  return 0;
}

Result<void> RamNode::set_size(Bytes size) {
  const uint64_t chunks = (size.v + kChunk - 1) / kChunk;
  // What a smaller disk no longer has must read as zeroes if it grows again.
  const uint64_t had = used_.size() * kChunk;
  if (size.v < had) zero(size.v, had - size.v);
  VBDKIT_TRY(memory_.resize(chunks * kChunk));
  used_.resize(chunks);
  return {};
}

void RamNode::block_status(StatusRequest& request) {
  auto& extents = request.extents;
  const size_t most = std::max<size_t>(request.max_extents, 1);
  const uint64_t end = request.offset + request.length;
  for (uint64_t at = request.offset; at < end;) {
    const uint64_t n = std::min(end - at, kChunk - at % kChunk);
    const bool used = used_[at / kChunk];
    if (!extents.empty() && extents.back().allocated == used)
      extents.back().length += n;
    else if (extents.size() == most)
      break;
    else
      extents.push_back({n, used, !used});
    at += n;
  }
  request.done(0);
}

constexpr const char* kKeys[] = {"size"};

Result<NodePtr> open_ram(const NodeSpec& spec, NodePtr, const OpenContext& context) {
  return MemoryLeaf::open(std::make_unique<RamNode>(spec, context));
}

}  // namespace

DriverEntry ram_driver() {
  return {"ram", "memory of the instance", false, false, kKeys, open_ram};
}

}  // namespace vbdkit::drivers
