// SPDX-License-Identifier: LGPL-2.1-or-later
//
// NbdWriter: an NBD client (libnbd) that writes to a disk, reads it and checks every byte against
// the model, with several requests in flight, none of which race. One thread.
#pragma once

#include <libnbd.h>

#include <array>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/result.h"
#include "tests/sim/stamped_disk.h"

namespace vbdkit::sim {

class NbdWriter {
 public:
  // `model` outlives it.
  NbdWriter(StampedDisk& model, uint64_t seed) : model_(model), random_(seed) {}

  Result<void> connect(const std::string& socket);
  // Requests, until they are answered. Fails where the connection does, or a request.
  Result<void> run(unsigned requests);
  // The whole disk, or more: what lies behind the model's end.
  Result<std::vector<std::byte>> read_all();

  uint64_t size() const;  // bytes
  uint64_t requests() const { return requests_; }
  // What was read and should not have been; or "".
  const std::string& problem() const { return problem_; }

 private:
  enum class What { kRead, kWrite, kZero, kFlush };
  struct Slot {
    bool busy = false;
    bool answered = false;
    int error = 0;
    What what = What::kRead;
    uint64_t sector = 0;
    uint64_t count = 0;  // sectors
    uint64_t stamp = 0;
    std::unique_ptr<StampedDisk::Since> since;
    std::vector<std::byte> data;
  };
  struct Close {
    void operator()(nbd_handle* nbd) const { nbd_close(nbd); }
  };

  bool start(Slot& slot);
  bool races(uint64_t sector, uint64_t count, bool change) const;
  Result<void> settle();
  uint64_t pick(uint64_t below) { return random_() % below; }

  StampedDisk& model_;
  std::mt19937_64 random_;
  std::unique_ptr<nbd_handle, Close> nbd_;
  std::array<Slot, 8> slots_;
  uint64_t requests_ = 0;
  std::string problem_;
};

}  // namespace vbdkit::sim
