// SPDX-License-Identifier: LGPL-2.1-or-later
//
// cbt: a filter that keeps track of which blocks were changed. A write, discard or write of zeroes
// goes on only when its blocks are recorded (bitmap_file.h has what is promised and at what cost);
// where they are already, it passes straight through.
// The reactor's thread.
#pragma once

#include <memory>

#include "drivers/cbt/bitmap_file.h"
#include "drivers/node.h"
#include "drivers/registry.h"

namespace vbdkit::drivers::cbt {

class CbtFilter final : public Filter {
 public:
  CbtFilter(NodePtr next, NodeSpec spec, std::unique_ptr<BitmapFile> file);

  std::string_view driver() const override { return "cbt"; }
  std::string spec() const override { return spec_in_front(spec_, next()); }
  void submit(Request& request) override;
  Result<void> refresh_size() override;
  Result<void> resize(Bytes size) override;
  Result<void> reopen(bool read_only) override;
  DirtyBitmap* dirty_bitmap() override { return file_.get(); }

  const BitmapFile& file() const { return *file_; }

 private:
  const NodeSpec spec_;
  std::unique_ptr<BitmapFile> file_;
};

}  // namespace vbdkit::drivers::cbt
