// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Names for things that must never be mixed up: random UUIDs (RFC 9562, version 4). Any thread.
#pragma once

#include <string>

#include "base/result.h"

namespace vbdkit {

Result<std::string> random_uuid();

}  // namespace vbdkit
