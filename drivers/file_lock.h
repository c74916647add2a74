// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Who may have an image open at the same time, kept by open-file-description locks (fcntl(2),
// F_OFD_SETLK), which the kernel drops with the descriptor, also when a process dies.
// QEMU locks single bytes of an image to say what it does with it and what it forbids others
// (block/file-posix.c: byte 100 + n for a permission held, 200 + n for one denied to others). An
// exclusive lock here covers the whole file and a shared one uses the same bytes, so that programs
// of both kinds keep out of each other's way.
#pragma once

#include <string>

#include "base/result.h"

namespace vbdkit::drivers {

enum class LockMode {
  kReader,        // others may read, none may write
  kWriter,        // nobody else
  kSharedReader,  // others may do what they like, if they share too
  kSharedWriter,
  // Others may read, and one may be a coalescer. Forbids nothing; the coalescer does.
  kYieldingReader,
  // Writes what those who read (kYieldingReader) do not see: merges a layer that covers it. Nobody
  // else may have the image open.
  kCoalescer,
};

// Replaces the lock that `fd` has; from a writer to a reader without a time in between in which
// there is none. Where it fails, there is none. The error names the path and, where it can be
// found, the process that is in the way.
[[gnu::cold]] Result<void> lock_image(int fd, const std::string& path, LockMode mode);
void unlock_image(int fd);

// Of a file that has just been locked: fails where the name is by now that of another one. A
// snapshot gives an image's name to another file; a lock on the old one is none on the image.
[[gnu::cold]] Result<void> check_name(int fd, const std::string& path);

// Says of an image that it is being merged into its parent; and asks whether somebody says so.
[[gnu::cold]] Result<void> mark_merging(int fd, const std::string& path);
bool is_merging(const std::string& path);

}  // namespace vbdkit::drivers
