// SPDX-License-Identifier: LGPL-2.1-or-later
//
// RawLayer: plain bytes as a layer, from the start of the file on: a raw base image, or the data of
// a format that keeps them in one piece (a fixed VHD). It holds everything up to its size, so
// nothing beneath it is ever asked.
#pragma once

#include <memory>
#include <string>

#include "drivers/chain/layer.h"

namespace vbdkit::drivers {

class RawLayer : public Layer {
 public:
  RawLayer(NodePtr file, Bytes size, std::string format);

  static Result<std::unique_ptr<Layer>> open(LayerSource source, const LayerContext& context);

  const LayerInfo& info() const override { return info_; }
  Node& file() override { return *file_; }
  const ParentReference* parent() const override { return nullptr; }
  void map(MapRequest& request) override;
  void read_special(Request& request) override { file_->submit(request); }
  void write(Request& request) override { file_->submit(request); }
  void discard(Request& request) override { file_->submit(request); }
  void write_zeroes(Request& request) override { file_->submit(request); }
  void flush(Request& request) override { file_->submit(request); }
  Result<void> resize(Bytes size) override;
  void set_chain(MapListener&, ParentReader&) override {}

 protected:
  LayerInfo info_;

 private:
  NodePtr file_;
};

}  // namespace vbdkit::drivers
