// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The content of compressed clusters (zlib's raw deflate, zstd). Pure; any thread.
#pragma once

#include <cstdint>
#include <span>

#include "drivers/qcow2/layout.h"

namespace vbdkit::drivers::qcow2 {

// One cluster's content from its compressed form, which may be followed by other bytes. False where
// it is damaged. Pure.
bool decompress(Compression method, std::span<const uint8_t> from, std::span<uint8_t> to);

}  // namespace vbdkit::drivers::qcow2
