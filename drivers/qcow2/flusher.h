// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Flusher: makes what was acknowledged durable, in an order that a power cut can end anywhere:
//   1. refcounts of what was allocated, and the data (which was written before): durable
//   2. L2 tables and the L1 table that point at it: durable
//   3. refcounts of what nothing points at any more
// Flushes that are asked for while one runs share the next one. With lazy refcounts, 1 and 3 wait
// until the image is closed or much has gathered; the image's dirty bit says so meanwhile.
// Thread: the reactor of the layer.
#pragma once

#include <cstdint>

#include "drivers/qcow2/refcounts.h"
#include "drivers/qcow2/tables.h"

namespace vbdkit::drivers::qcow2 {

class Flusher {
 public:
  // So much may be changed and not written before a write has to wait for a flush.
  static constexpr size_t kMaxDirtySlices = 1024;  // 4 MiB
  static constexpr size_t kMaxGivenBack = 65536;   // runs of clusters

  Flusher(Image& image, Tables& tables, FreeSpace& space, Refcounts& refcounts)
      : image_(image), tables_(tables), space_(space), refcounts_(refcounts), turn_(image.ready) {}

  Task<int> flush();
  // The last one: leaves nothing for later.
  Task<int> close();
  // Likewise, but goes on afterwards.
  Task<int> settle();
  bool needed() const {
    return tables_.dirty_slices() >= kMaxDirtySlices || space_.given_back_count() >= kMaxGivenBack;
  }
  // The disk's size changed; the next flush writes the header.
  void header_changed() { header_changed_ = true; }

 private:
  struct Round {
    Tables::Copy tables;
    std::vector<HostRange> allocated;
    std::vector<HostRange> given_back;
    HostRange l1;  // where the L1 table goes, if it moves
    bool header = false;
  };

  Task<int> round();
  Task<int> count_allocated(Round& r);
  Task<int> write_tables(Round& r);
  Task<int> move_l1(Round& r);
  Task<int> set_dirty_bit(bool dirty);

  Image& image_;
  Tables& tables_;
  FreeSpace& space_;
  Refcounts& refcounts_;
  Waiters turn_;
  bool running_ = false;
  bool header_changed_ = false;
  bool closing_ = false;
  uint64_t asked_ = 0;                // flushes, by number
  uint64_t covered_ = 0;              // by rounds that have ended
  int last_error_ = 0;                // of the last round
  std::vector<HostRange> uncounted_;  // with lazy refcounts: durable, but not in the refcounts
};

}  // namespace vbdkit::drivers::qcow2
