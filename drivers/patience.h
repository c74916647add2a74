// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Patience: how long a node's requests wait for storage that has gone and may come back (the server
// of an export), before they fail. A guest's disk waits for ever as a rule; what is only being
// copied to must not keep the guest waiting. The reactor's thread.
#pragma once

#include <chrono>

namespace vbdkit::drivers {

class Patience {
 public:
  virtual std::chrono::milliseconds patience() const = 0;  // 0: for ever
  virtual void set_patience(std::chrono::milliseconds patience) = 0;

 protected:
  ~Patience() = default;
};

}  // namespace vbdkit::drivers
