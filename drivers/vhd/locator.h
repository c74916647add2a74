// SPDX-License-Identifier: LGPL-2.1-or-later
//
// How a differencing VHD says where its parent is: texts of the locators MACX (a file URL), W2KU
// and W2RU (UTF-16 paths with backslashes), and the name in the header, to and from paths of this
// system. Pure: bytes and strings, no file is looked at.
// Source: "Virtual Hard Disk Image Format Specification", sections "Dynamic Disk Header Format" and
// "Implementing a Differencing Hard Disk".
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "drivers/vhd/layout.h"

namespace vbdkit::drivers::vhd {

// Longest text that is looked at; longer ones are no paths.
inline constexpr size_t kMaxLocatorText = 8192;  // bytes

// UTF-8 with slashes; nothing where the bytes are no text of that code, or a path with a NUL.
std::optional<std::string> decode_locator(uint32_t code, std::span<const std::byte> bytes);
std::optional<std::string> decode_parent_name(std::span<const std::byte, 512> name);

// Where the parent may be, most likely first: `texts` are decoded locators in the order of the
// header, then its name. Relative ones start at the directory of the child; of a Windows path with
// a drive only the last part means anything here, and it is looked for beside the child.
std::vector<std::string> parent_candidates(const std::string& child,
                                           const std::vector<std::string>& texts);

// What a child writes. `relative`: from the child's directory to the parent, with slashes.
std::vector<std::byte> encode_locator(uint32_t code, std::string_view relative);
std::array<std::byte, 512> encode_parent_name(std::string_view file_name);

}  // namespace vbdkit::drivers::vhd
