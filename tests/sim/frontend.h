// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A blkfront of ours: the xenbus handshake of <xen/io/blkif.h> for one disk of one simulated guest,
// its queues, and synchronous I/O for tests. Well-behaved unless told otherwise: overrides,
// raw rings and the guest's store let a test break any rule. One thread; other threads may drive
// queues other than the first.
//
//   auto guest = world->create_guest();
//   auto disk = world->toolstack().attach((*guest)->domid(), {.target = "raw:/tmp/a.img"});
//   auto front = Frontend::create(**guest, disk->devid, {.ring_order = 2});
//   (*front)->connect(in(5s));
//   (*front)->write(0, data, in(5s));           // Result<int16_t>: BLKIF_RSP_OKAY
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "tests/sim/guest.h"
#include "tests/sim/ring_queue.h"

namespace vbdkit::sim {

struct FrontendOptions {
  Abi abi = Abi::kX86_64;
  // What goes into the protocol node; "" writes none, which a backend reads as x86_32.
  bool write_protocol = true;
  unsigned ring_order = 0;
  // Writes ring-page-order and ring-ref0 even for a single page, as Windows and QEMU's tests do.
  bool always_write_order = false;
  unsigned queues = 1;
  unsigned indirect_segments = 0;  // 0: none; capped by what the backend offers
  bool persistent = false;         // capped by what the backend offers
  bool padding_zero = true;        // QueueOptions; false for QEMU
  // Frontend nodes, relative to its directory, that replace what would be written; an empty value
  // leaves the node out. E.g. {{"ring-ref", "4294967295"}}.
  std::map<std::string, std::string> overrides = {};
};

// What the backend published.
struct Features {
  uint64_t sectors = 0;
  uint32_t sector_size = 0;
  uint32_t physical_sector_size = 0;
  uint32_t info = 0;  // VDISK_*
  bool flush = false;
  bool barrier = false;
  bool discard = false;
  bool discard_secure = false;
  uint64_t discard_granularity = 0;
  uint64_t discard_alignment = 0;
  bool persistent = false;
  uint32_t max_ring_page_order = 0;
  uint32_t max_queues = 1;
  uint32_t max_indirect_segments = 0;
};

class Frontend {
 public:
  static Result<std::unique_ptr<Frontend>> create(Guest& guest, int devid,
                                                  const FrontendOptions& options = {});
  ~Frontend();
  Frontend(const Frontend&) = delete;
  Frontend& operator=(const Frontend&) = delete;

  // ---- life cycle. connect() is the first four in order. ----
  Result<void> connect(Deadline deadline);
  Result<void> wait_backend_ready(Deadline deadline);  // InitWait or later
  Result<void> make_queues();  // rings, grants, ports: nothing the backend sees yet
  Result<void> publish();      // the nodes, and state 3
  Result<void> wait_connected(Deadline deadline);  // backend 4; reads the features; state 4

  // Closing, Closed; waits for the backend's Closed, then takes the rings back. An error where the
  // backend has not let go of a ring page.
  Result<void> close(Deadline deadline);
  // What Linux's xenbus_reset_frontend does in a kexec'd kernel: 5, 6, 1, each answered.
  Result<void> reset(Deadline deadline);
  // Forgets rings and ports as a crashed guest kernel would, without a word to the backend.
  void drop_queues();

  Result<void> set_state(XenbusState state);
  XenbusState backend_state();
  Result<void> wait_backend(XenbusState state, Deadline deadline);

  Guest& guest() { return guest_; }
  const std::string& path() const { return path_; }
  const std::string& backend_path() const { return backend_path_; }
  // Read at connect(); refresh_features() reads them again, e.g. after a resize.
  const Features& features() const { return features_; }
  void refresh_features();
  // What was agreed on.
  bool persistent() const { return persistent_; }
  unsigned max_segments() const { return max_segments_; }
  size_t queue_count() const { return queues_.size(); }
  RingQueue& queue(size_t index = 0) { return *queues_[index]; }

  // ---- synchronous I/O on queue 0; the status is the worst of its requests ----
  Result<int16_t> read(uint64_t sector, std::span<std::byte> data, Deadline deadline);
  Result<int16_t> write(uint64_t sector, std::span<const std::byte> data, Deadline deadline);
  Result<int16_t> write_barrier(uint64_t sector, std::span<const std::byte> data,
                                Deadline deadline);
  // A flush may carry data (preflush and write).
  Result<int16_t> flush(Deadline deadline, uint64_t sector = 0,
                        std::span<const std::byte> data = {});
  Result<int16_t> discard(uint64_t sector, uint64_t sectors, Deadline deadline,
                          bool secure = false);

 private:
  Frontend(Guest& guest, int devid, FrontendOptions options);
  Result<int16_t> transfer(uint8_t operation, uint64_t sector, std::byte* data, size_t size,
                           Deadline deadline);
  std::string path_of(const std::string& node) const { return path_ + "/" + node; }
  Result<void> write_nodes(Store::Transaction t);
  Result<void> take_back();

  Guest& guest_;
  int devid_;
  FrontendOptions options_;
  std::string path_;
  std::string backend_path_;
  Features features_;
  bool persistent_ = false;
  unsigned max_segments_ = 0;
  std::vector<std::unique_ptr<RingQueue>> queues_;
  Pages bounce_;                       // for the synchronous calls
  std::vector<GrantRef> bounce_refs_;  // granted for ever where persistent
};

}  // namespace vbdkit::sim
