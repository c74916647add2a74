// SPDX-License-Identifier: LGPL-2.1-or-later
//
// --option key=value of the commands that make images.
#pragma once

#include <map>
#include <string>

#include "storage/arguments.h"

namespace vbdkit::storage {

void add_format_options(Syntax& syntax);
Result<std::map<std::string, std::string>> parse_options(const po::variables_map& vm);

}  // namespace vbdkit::storage
