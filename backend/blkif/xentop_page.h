// SPDX-License-Identifier: LGPL-2.1-or-later
//
// XentopPage: the file through which xentop sees a disk's numbers. libxenstat finds it as
// DIR/td3-<pid>/vbd-<domid>-<devid>, with the pid from the backend's node "kthread-pid": two u32
// (version 1, padding), then eleven u64: out-of-resources; reads submitted, completed, sectors,
// microseconds; the same four of writes; errors; flags.
//
// Thread: add() from any queue's. The file and, with the last disk, its directory are removed on
// destruction.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>

#include "backend/blkif/stats.h"
#include "backend/xen/headers.h"
#include "base/result.h"

namespace vbdkit::blkif {

class XentopPage {
 public:
  static Result<std::unique_ptr<XentopPage>> create(const std::string& dir, xen::DomId domid,
                                                    const std::string& device_id);
  ~XentopPage();
  XentopPage(const XentopPage&) = delete;
  XentopPage& operator=(const XentopPage&) = delete;

  // Adds what `now` has more than `*published`, and brings that up to date.
  void add(const Stats& now, Stats& published);

 private:
  struct Layout {
    uint32_t version;
    uint32_t pad;
    std::array<std::atomic<uint64_t>, 11> fields;
  };
  static_assert(sizeof(Layout) == 96 && std::atomic<uint64_t>::is_always_lock_free);

  XentopPage(std::string dir, std::string path, Layout* page)
      : dir_(std::move(dir)), path_(std::move(path)), page_(page) {}

  std::string dir_;
  std::string path_;
  Layout* page_;
};

}  // namespace vbdkit::blkif
