// SPDX-License-Identifier: LGPL-2.1-or-later
#include "base/code_pages.h"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

namespace vbdkit {

void release_code_pages() {
  dl_iterate_phdr(
      [](dl_phdr_info* object, size_t, void*) {
        const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
        for (const ElfW(Phdr)* h = object->dlpi_phdr; h < object->dlpi_phdr + object->dlpi_phnum;
             ++h) {
          if (h->p_type != PT_LOAD || (h->p_flags & PF_W) != 0) continue;
          const uintptr_t begin = object->dlpi_addr + h->p_vaddr;
          // Only whole pages of the segment; what the kernel made itself (the vDSO) it refuses.
          const uintptr_t first = (begin + page - 1) & ~(page - 1);
          const uintptr_t end = (begin + h->p_memsz) & ~(page - 1);
          if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
        }
        return 0;
      },
      nullptr);
}

}  // namespace vbdkit
