// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/control/arguments.h"

namespace vbdkit::control {

Error wrong_type(const char* argument, const char* expected) {
  return Error(ErrorKind::kInvalid,
               std::string("Invalid parameter type for '") + argument + "', expected: " + expected);
}

Result<std::map<std::string, std::string>> string_map(const Json& arguments, const char* argument) {
  std::map<std::string, std::string> strings;
  const Json object = arguments.member(argument);
  for (const std::string& key : object.keys()) {
    const auto value = object.member(key).string();
    if (!value)
      return Error(ErrorKind::kInvalid,
                   std::string("Parameter '") + argument + "." + key + "' is no string");
    strings[key] = *value;
  }
  return strings;
}

}  // namespace vbdkit::control
