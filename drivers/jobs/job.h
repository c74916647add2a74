// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What all jobs have in common, for whoever shows how far they are. The reactor's thread.
#pragma once

#include <cstdint>

namespace vbdkit::drivers {

class Job {
 public:
  virtual ~Job() = default;

  // Bytes of the disk that are settled, of how many.
  virtual uint64_t settled() const = 0;
  virtual uint64_t total() const = 0;
  // Starts nothing more; the job ends with ECANCELED once what is in flight has come back.
  virtual void cancel() = 0;

 protected:
  Job() = default;
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
};

}  // namespace vbdkit::drivers
