// SPDX-License-Identifier: LGPL-2.1-or-later
//
// libnbd, loaded when the first disk needs it. Linked, it would bring 15 further libraries (TLS,
// XML, ICU) into every instance: some milliseconds at each start and nearly 4 MiB, for a disk that
// may be a file. Only functions are looked up; types and signatures are those of <libnbd.h>.
// Values only; any thread. The library stays loaded.
#pragma once

#include <libnbd.h>

#include "base/result.h"

namespace vbdkit::drivers::nbd {

#define VBDKIT_LIBNBD_FUNCTIONS(X) \
  X(nbd_add_meta_context)          \
  X(nbd_aio_block_status)          \
  X(nbd_aio_connect)               \
  X(nbd_aio_connect_uri)           \
  X(nbd_aio_disconnect)            \
  X(nbd_aio_flush)                 \
  X(nbd_aio_get_direction)         \
  X(nbd_aio_get_fd)                \
  X(nbd_aio_is_closed)             \
  X(nbd_aio_is_dead)               \
  X(nbd_aio_is_ready)              \
  X(nbd_aio_notify_read)           \
  X(nbd_aio_notify_write)          \
  X(nbd_aio_pread)                 \
  X(nbd_aio_pwrite)                \
  X(nbd_aio_trim)                  \
  X(nbd_aio_zero)                  \
  X(nbd_can_flush)                 \
  X(nbd_can_fua)                   \
  X(nbd_can_meta_context)          \
  X(nbd_can_trim)                  \
  X(nbd_can_zero)                  \
  X(nbd_close)                     \
  X(nbd_create)                    \
  X(nbd_get_block_size)            \
  X(nbd_get_errno)                 \
  X(nbd_get_error)                 \
  X(nbd_get_export_name)           \
  X(nbd_get_size)                  \
  X(nbd_is_read_only)              \
  X(nbd_is_rotational)             \
  X(nbd_poll)                      \
  X(nbd_set_export_name)           \
  X(nbd_set_pread_initialize)      \
  X(nbd_set_uri_allow_local_file)  \
  X(nbd_set_uri_allow_tls)         \
  X(nbd_set_uri_allow_transports)

struct LibNbd {
#define VBDKIT_LIBNBD_MEMBER(name) decltype(&::name) name = nullptr;
  VBDKIT_LIBNBD_FUNCTIONS(VBDKIT_LIBNBD_MEMBER)
#undef VBDKIT_LIBNBD_MEMBER

  static Result<LibNbd> load();
};

}  // namespace vbdkit::drivers::nbd
