// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Preloaded into xenstored alone: sends its open("/proc/xen/…") to the files of the same name in
// $SIMXEN_PROC, where the broker put domain 0's store ring and port.
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdlib>
#include <string>
#include <string_view>

namespace {

int redirected_open(const char* path, int flags, mode_t mode) {
  constexpr std::string_view kFrom = "/proc/xen/";
  const char* to = std::getenv("SIMXEN_PROC");
  std::string target = path;
  if (to != nullptr && target.starts_with(kFrom))
    target = std::string(to) + '/' + target.substr(kFrom.size());
  return static_cast<int>(::syscall(SYS_openat, AT_FDCWD, target.c_str(), flags, mode));
}

mode_t mode_argument(int flags, va_list args) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(args, mode_t) : 0;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int open(const char* path, int flags, ...) {
  va_list args;
  va_start(args, flags);
  const mode_t mode = mode_argument(flags, args);
  va_end(args);
  return redirected_open(path, flags, mode);
}

extern "C" __attribute__((visibility("default"))) int open64(const char* path, int flags, ...) {
  va_list args;
  va_start(args, flags);
  const mode_t mode = mode_argument(flags, args);
  va_end(args);
  return redirected_open(path, flags, mode);
}
