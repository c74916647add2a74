// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/memory_leaf.h"

#include "drivers/options.h"

namespace vbdkit::drivers {
namespace {

// off_t and mmap end here, as does every image format.
constexpr uint64_t kMaxSize = uint64_t{1} << 62;

}  // namespace

MemoryLeaf::MemoryLeaf(NodeSpec spec, const OpenContext& context) : spec_(std::move(spec)) {
  info_.physical_block = 4096;
  info_.discard_granularity = 4096;
  info_.can_discard = true;
  info_.can_write_zeroes = true;
  info_.read_only = context.options.read_only;
}

Result<NodePtr> MemoryLeaf::open(std::unique_ptr<MemoryLeaf> node) {
  const OptionReader reader(node->spec_);
  if (!reader.has("size"))
    return Error(ErrorKind::kInvalid, node->spec_.driver + ": key 'size' is missing (as in " +
                                          node->spec_.driver + ",size=1G)");
  VBDKIT_ASSIGN(const uint64_t size, reader.size("size", 0));
  VBDKIT_TRY(node->change_size(Bytes{size}));
  return NodePtr(std::move(node));
}

// The present size, which a resize may have changed.
std::string MemoryLeaf::spec() const {
  NodeSpec now = spec_;
  now.options["size"] = std::to_string(info_.size.v);
  return now.to_string();
}

void MemoryLeaf::submit(Request& request) {
  int error = 0;
  if (request.op != Op::kFlush) {
    if (!range_inside(request.offset, request.length, info_.size.v))
      error = EINVAL;
    else if (request.op != Op::kRead && info_.read_only)
      error = EROFS;
    else if (request.op == Op::kCopy)
      error = EOPNOTSUPP;
    else
      error = execute(request);
  }
  request.done(request, error);
}

Result<void> MemoryLeaf::change_size(Bytes size) {
  if (size.v == 0 || size.v % kSectorSize != 0 || size.v > kMaxSize)
    return Error(ErrorKind::kInvalid, spec_.driver + ": size " + std::to_string(size.v) +
                                          ": expected a whole number of sectors of 512 bytes");
  VBDKIT_TRY(set_size(size));
  info_.size = size;
  return {};
}

Result<void> MemoryLeaf::resize(Bytes size) {
  if (info_.read_only)
    return Error(ErrorKind::kPermission, spec_.driver + ": resize: opened read-only", EROFS);
  return change_size(size);
}

Result<void> MemoryLeaf::reopen(bool read_only) {
  info_.read_only = read_only;
  return {};
}

}  // namespace vbdkit::drivers
