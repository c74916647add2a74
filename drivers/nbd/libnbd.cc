// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/nbd/libnbd.h"

#include <dlfcn.h>

#include <string>

namespace vbdkit::drivers::nbd {
namespace {

// Of libnbd 1.x; functions are only added within it.
constexpr const char* kLibrary = "libnbd.so.0";

Error missing() {
  const char* const why = dlerror();
  return Error(ErrorKind::kUnsupported,
               std::string("nbd: load ") + kLibrary + ": " + (why == nullptr ? "failed" : why));
}

}  // namespace

Result<LibNbd> LibNbd::load() {
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) return missing();
  LibNbd api;
#define VBDKIT_LIBNBD_LOOKUP(name)                                        \
  api.name = reinterpret_cast<decltype(api.name)>(dlsym(library, #name)); \
  if (api.name == nullptr) return missing();
  VBDKIT_LIBNBD_FUNCTIONS(VBDKIT_LIBNBD_LOOKUP)
#undef VBDKIT_LIBNBD_LOOKUP
  return api;
}

}  // namespace vbdkit::drivers::nbd
