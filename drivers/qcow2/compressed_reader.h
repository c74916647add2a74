// SPDX-License-Identifier: LGPL-2.1-or-later
//
// CompressedReader: reads clusters that are stored compressed. The clusters decompressed last are
// kept, bounded in bytes; reads of one that is under way share it.
// Thread: the reactor of the layer; decompression runs on it.
#pragma once

#include <cstdint>
#include <list>
#include <memory>

#include "drivers/qcow2/image.h"

namespace vbdkit::drivers::qcow2 {

class CompressedReader {
 public:
  static constexpr size_t kMaxBytes = size_t{2} << 20;  // kept; at least one cluster

  explicit CompressedReader(Image& image) : image_(image) {}

  struct Cluster {
    uint64_t host = 0;
    Buffer data;
    bool ready = false;
    int error = 0;
    std::vector<std::coroutine_handle<>> waiting;
  };
  struct Content {
    int error = 0;  // errno
    std::shared_ptr<const Cluster> cluster;
  };
  Task<Content> read(ClusterState state);
  // That place in the file is free now.
  void forget(uint64_t host);

 private:
  Task<int> fill(ClusterState state, Cluster& cluster);

  Image& image_;
  std::list<std::shared_ptr<Cluster>> recent_;  // latest first
};

}  // namespace vbdkit::drivers::qcow2
