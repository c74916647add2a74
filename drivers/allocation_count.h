// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests that promise not to allocate: how often operator new has run in this program, in any
// thread. Linking allocation_count.cc replaces the operator.
#pragma once

#include <cstdint>

namespace vbdkit::drivers {

uint64_t allocation_count();

}  // namespace vbdkit::drivers
