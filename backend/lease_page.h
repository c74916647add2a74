// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The page in which vbdkit-registryd says until when this host's processes may touch shared images.
// It is a file of the runtime directory that they map, so that looking is two loads and a clock
// read, and a renewed lease wakes nobody.
//
// Points in time are of CLOCK_BOOTTIME, which goes on while the machine sleeps. The epoch is the
// create revision of the host's own key: as long as that key has lived without a break, nobody can
// have taken what this host has. A new epoch is written before a later point in time, and read
// after it, so that no reader takes the new time for his old epoch's.
//
// One writer, any number of readers, in any process; a view is for one thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace vbdkit {

struct BootClock {
  using rep = int64_t;
  using period = std::nano;
  using duration = std::chrono::nanoseconds;
  using time_point = std::chrono::time_point<BootClock>;
  static constexpr bool is_steady = true;
  static time_point now();
};

struct LeaseLayout;  // lease_page.cc

class LeaseView {
 public:
  // kNotFound where no vbdkit-registryd has run since the machine began.
  [[gnu::cold]] static Result<LeaseView> open(const std::string& runtime_dir);
  LeaseView(LeaseView&&) noexcept = default;

  // When to hold, in that epoch; a time long past where the page is of another one.
  BootClock::time_point hold_at(uint64_t epoch) const;
  uint64_t epoch() const;

 private:
  struct Unmap {
    void operator()(const LeaseLayout* page) const;
  };
  explicit LeaseView(const LeaseLayout* page) : page_(page) {}
  std::unique_ptr<const LeaseLayout, Unmap> page_;
};

class LeasePage {
 public:
  // What is there goes on being valid: a registryd that is started anew has taken nothing back.
  static Result<LeasePage> create(const std::string& runtime_dir);
  LeasePage(LeasePage&&) noexcept = default;

  void publish(uint64_t epoch, BootClock::time_point hold_at);
  // From now on everybody holds.
  void close();
  uint64_t epoch() const;

 private:
  struct Unmap {
    void operator()(LeaseLayout* page) const;
  };
  explicit LeasePage(LeaseLayout* page) : page_(page) {}
  std::unique_ptr<LeaseLayout, Unmap> page_;
};

}  // namespace vbdkit
