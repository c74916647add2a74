// SPDX-License-Identifier: LGPL-2.1-or-later
//
// null: reads zeroes, drops writes. What a benchmark puts beneath the thing it measures.
#include "drivers/drivers.h"
#include "drivers/iov.h"
#include "drivers/memory_leaf.h"

namespace vbdkit::drivers {
namespace {

class NullNode final : public MemoryLeaf {
 public:
  NullNode(NodeSpec spec, const OpenContext& context) : MemoryLeaf(std::move(spec), context) {}

  void block_status(StatusRequest& request) override {
    request.extents.push_back({request.length, false, true});
    request.done(0);
  }

 private:
  int execute(const Request& request) override {
    if (request.op == Op::kRead) zero_iov(request.iov, 0, request.length);
    return 0;
  }
  Result<void> set_size(Bytes) override { return {}; }
};

constexpr const char* kKeys[] = {"size"};

Result<NodePtr> open_null(const NodeSpec& spec, NodePtr, const OpenContext& context) {
  return MemoryLeaf::open(std::make_unique<NullNode>(spec, context));
}

}  // namespace

DriverEntry null_driver() {
  return {"null", "reads zeroes and drops writes", false, false, kKeys, open_null};
}

}  // namespace vbdkit::drivers
