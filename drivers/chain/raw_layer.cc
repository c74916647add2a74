// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/chain/raw_layer.h"

#include "drivers/chain/window_map.h"

namespace vbdkit::drivers {

RawLayer::RawLayer(NodePtr file, Bytes size, std::string format) : file_(std::move(file)) {
  const NodeInfo& node = file_->info();
  info_.size = size;
  info_.map_window = kMaxWindow;
  info_.alignment = node.request_alignment;
  info_.format = std::move(format);
  info_.discard_granularity = node.discard_granularity;
  info_.can_write_zeroes = node.can_write_zeroes;
}

Result<std::unique_ptr<Layer>> RawLayer::open(LayerSource source, const LayerContext&) {
  const Bytes size{align_down(source.file->info().size.v, kSectorSize)};
  return std::unique_ptr<Layer>(std::make_unique<RawLayer>(std::move(source.file), size, "raw"));
}

void RawLayer::map(MapRequest& request) {
  request.segments.push_back({request.length, request.offset, Segment::Kind::kData});
  request.done(0);
}

Result<void> RawLayer::resize(Bytes size) {
  VBDKIT_TRY(file_->resize(size));
  info_.size = size;
  return {};
}

}  // namespace vbdkit::drivers
