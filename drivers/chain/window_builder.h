// SPDX-License-Identifier: LGPL-2.1-or-later
//
// WindowBuilder: finds out where the bytes of one window are, by asking the layers from the first
// one down for what is still absent. Most windows are answered by one or two layers, and a deep
// chain must not cost one round trip per layer: 1, 2, 4, 8… layers are asked at a time.
//
// While it runs, changes of the leaf are handed to it (remapped()) and applied last.
// Owned by the chain's node, which must keep it until `done` ran; the reactor's thread. `done` may
// run inside start(), and may destroy the builder.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "drivers/chain/layer.h"
#include "drivers/chain/window_map.h"

namespace vbdkit::drivers {

class WindowBuilder {
 public:
  using Layers = std::vector<std::unique_ptr<Layer>>;

  // Leaves out the layers above `first`. `window`: bytes. `ids`: what sources call the layers;
  // without, by their position.
  WindowBuilder(const Layers& layers, uint16_t first, uint64_t window, uint64_t index,
                std::span<const uint16_t> ids = {});

  void start(std::function<void(int error)> done);

  // A change of the leaf inside the window: disk offsets.
  void remapped(uint64_t offset, uint64_t length, Source source);
  // A change whose outcome only another asking of all layers can tell.
  void invalidate() { stale_ = true; }
  bool stale() const { return stale_; }

  uint64_t index() const { return index_; }
  // After `done` ran without error.
  Window take();

 private:
  // Bytes of the disk.
  struct Range {
    uint64_t start;
    uint64_t end;
  };
  struct Piece {
    uint64_t start;
    uint64_t end;
    Source source;
  };
  struct Ask {
    MapRequest request;
    bool answered = false;
  };

  uint16_t id_of(uint16_t layer) const { return ids_.empty() ? layer : ids_[layer]; }
  void pump();
  bool ask_next();
  void ask(uint16_t layer);
  void merge(uint16_t layer);
  void place(const Range& range, Source source) {
    pieces_.push_back({range.start, range.end, source});
  }

  const Layers& layers_;
  const std::span<const uint16_t> ids_;
  const uint64_t window_;
  const uint64_t index_;
  std::function<void(int error)> done_;
  std::vector<Range> absent_;  // not found yet, ascending
  std::vector<Piece> pieces_;
  std::vector<Piece> changes_;
  std::deque<Ask> asks_;  // by layer, from first_ on
  uint16_t first_;
  uint16_t asked_;   // the next layer to ask
  uint16_t merged_;  // the next layer whose answer is due
  unsigned outstanding_ = 0;
  unsigned allowance_ = 1;
  int error_ = 0;
  bool stale_ = false;
  bool pumping_ = false;
  bool again_ = false;
};

}  // namespace vbdkit::drivers
