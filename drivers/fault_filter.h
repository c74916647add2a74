// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests: a filter that makes the storage beneath a node fail when it is told to. The reactor's
// thread.
#pragma once

#include <functional>

#include "drivers/node.h"

namespace vbdkit::drivers {

class FaultFilter final : public Filter {
 public:
  // Returns the errno with which the request fails without reaching the next node, or 0.
  using Judge = std::function<int(const Request&)>;

  FaultFilter(NodePtr next, Judge judge) : Filter(std::move(next)), judge_(std::move(judge)) {}

  std::string_view driver() const override { return "fault"; }
  std::string spec() const override { return next().spec(); }
  void submit(Request& request) override {
    if (const int error = judge_(request))
      request.done(request, error);
    else
      next().submit(request);
  }

 private:
  Judge judge_;
};

}  // namespace vbdkit::drivers
