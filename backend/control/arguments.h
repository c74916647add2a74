// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What commands do with their arguments, and say of wrong ones, in QEMU's words. Pure; any thread.
#pragma once

#include <map>
#include <string>

#include "backend/control/json.h"
#include "base/result.h"

namespace vbdkit::control {

Error wrong_type(const char* argument, const char* expected);
// An object of strings; empty where it is not there.
Result<std::map<std::string, std::string>> string_map(const Json& arguments, const char* argument);

}  // namespace vbdkit::control
