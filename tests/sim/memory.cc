// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

namespace vbdkit::sim {

Mapping::~Mapping() {
  if (start_ != nullptr) ::munmap(start_, size_);
}

Result<Mapping> Mapping::map(const Fd& fd, size_t size) {
  void* start = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (start == MAP_FAILED) return Error::from_errno(errno, "simxen: mmap");
  return Mapping(start, size);
}

Result<Fd> make_memfd(const std::string& name, size_t size) {
  Fd fd(::memfd_create(name.c_str(), MFD_CLOEXEC));
  if (!fd.valid()) return Error::from_errno(errno, "simxen: memfd_create " + name);
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0)
    return Error::from_errno(errno, "simxen: ftruncate " + name);
  return fd;
}

}  // namespace vbdkit::sim
