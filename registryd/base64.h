// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Base64 as etcd's JSON gateway has it for keys and values: RFC 4648, section 4, with padding.
// Pure; any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace vbdkit::registryd {

std::string to_base64(std::string_view bytes);
// Nothing where it is none: another character, a length or a padding that cannot be.
std::optional<std::string> from_base64(std::string_view text);

}  // namespace vbdkit::registryd
