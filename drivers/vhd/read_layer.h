// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ReadLayer: a dynamic or differencing VHD opened read-only: a parent, or a leaf that takes no
// writes. It keeps neither table nor sector bitmaps in memory (the chain's map does, in a better
// form): each map() reads what it needs, all bitmaps of a window at once. Blocks that the batmap
// says are whole need no bitmap. The reactor's thread.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "drivers/chain/layer.h"
#include "drivers/vhd/metadata.h"
#include "drivers/vhd/table_cache.h"

namespace vbdkit::drivers::vhd {

// What the layers of this format say of themselves.
LayerInfo describe(const Metadata& metadata, const Node& file);

class ReadLayer final : public Layer {
 public:
  ReadLayer(LayerSource source, const LayerContext& context, Metadata metadata,
            std::optional<std::vector<std::byte>> batmap, std::optional<ParentReference> parent);

  const LayerInfo& info() const override { return info_; }
  Node& file() override { return *file_; }
  const ParentReference* parent() const override { return parent_ ? &*parent_ : nullptr; }
  void map(MapRequest& request) override;
  void read_special(Request& request) override { request.done(request, EIO); }
  void write(Request& request) override { request.done(request, EROFS); }
  void discard(Request& request) override { request.done(request, EROFS); }
  void write_zeroes(Request& request) override { request.done(request, EROFS); }
  void flush(Request& request) override { file_->submit(request); }
  Result<void> resize(Bytes size) override;
  void set_chain(MapListener&, ParentReader&) override {}

 private:
  struct Mapping;

  void read_bitmaps(Mapping& mapping);
  bool valid(uint32_t entry);
  void answer(Mapping& mapping);

  const std::string path_;
  Metadata metadata_;
  const std::optional<std::vector<std::byte>> batmap_;
  const std::optional<ParentReference> parent_;
  const Logger& log_;
  RateLimit complaints_;
  NodePtr file_;
  LayerInfo info_;
  TableCache table_;
};

// Appends what a block's bitmap says of `count` sectors from `first` on. `data`: where the block's
// data begin in the file. `bitmap` null: all sectors are there.
void append_segments(std::vector<Segment>& segments, const std::byte* bitmap, uint32_t first,
                     uint32_t count, uint64_t data);
void append_segment(std::vector<Segment>& segments, Segment segment);

}  // namespace vbdkit::drivers::vhd
