// SPDX-License-Identifier: LGPL-2.1-or-later
//
// cache: a filter that keeps what was read in bounded memory (page_store.h), of one instance or of
// all that use the same base images. Direct I/O and remote storage have no page cache; this is one.
//
// Memory of a guest can change at any time, so nothing goes from there into the cache: what is
// missing is read into a buffer of ours, remembered, and copied to the guest.
// The reactor's thread.
#pragma once

#include <memory>

#include "base/buffer_pool.h"
#include "drivers/cache/page_store.h"
#include "drivers/node.h"
#include "drivers/registry.h"
#include "drivers/request_pool.h"

namespace vbdkit::drivers::cache {

struct CacheCounters {
  uint64_t hits = 0;    // pages
  uint64_t misses = 0;  // reads that went on, in whole or in part
};

class CacheFilter final : public Filter {
 public:
  // `immutable`: what is beneath does not change while it is open.
  CacheFilter(NodePtr next, NodeSpec spec, std::shared_ptr<PageStore> pages, ImageKey image,
              bool immutable);

  const CacheCounters& counters() const { return counters_; }

  std::string_view driver() const override { return "cache"; }
  std::string spec() const override { return spec_in_front(spec_, next()); }
  void submit(Request& request) override;
  Result<void> refresh_size() override;
  Result<void> resize(Bytes size) override;
  Result<void> reopen(bool read_only) override;

 private:
  struct Miss : Request {
    CacheFilter* filter = nullptr;
    Request* origin = nullptr;
    uint64_t wanted = 0;         // where what the guest still lacks begins
    uint64_t wanted_length = 0;  // bytes
    BufferPool::Buffer buffer;
    iovec memory{};
  };

  void read(Request& request);
  bool serve(const Request& request, uint64_t from, uint64_t to);
  void fetch(Request& request, uint64_t from, uint64_t to);
  void fetched(Miss& miss, int error);
  void forget(const Request& request);

  const NodeSpec spec_;
  const std::shared_ptr<PageStore> pages_;
  ImageKey image_;
  const bool immutable_;
  Page page_{};
  BufferPool pool_;
  RequestPool<Miss> misses_;
  CacheCounters counters_;
};

}  // namespace vbdkit::drivers::cache
