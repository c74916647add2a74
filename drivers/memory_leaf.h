// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the leaves without storage (ram, null) have in common: a size given as an option, and
// requests that are done at once, inside submit(). The reactor's thread.
#pragma once

#include <memory>

#include "drivers/registry.h"

namespace vbdkit::drivers {

class MemoryLeaf : public Node {
 public:
  // Reads `size` and calls set_size().
  static Result<NodePtr> open(std::unique_ptr<MemoryLeaf> node);

  std::string_view driver() const override { return spec_.driver; }
  std::string spec() const override;
  const NodeInfo& info() const override { return info_; }
  void submit(Request& request) override;
  Result<void> refresh_size() override { return {}; }
  Result<void> resize(Bytes size) override;
  Result<void> reopen(bool read_only) override;

 protected:
  MemoryLeaf(NodeSpec spec, const OpenContext& context);

 private:
  // The range is inside the disk, and what changes it is allowed. Returns 0 or an errno.
  virtual int execute(const Request& request) = 0;
  // Called before info() tells the new size.
  virtual Result<void> set_size(Bytes size) = 0;

  Result<void> change_size(Bytes size);

  const NodeSpec spec_;
  NodeInfo info_;
};

}  // namespace vbdkit::drivers
