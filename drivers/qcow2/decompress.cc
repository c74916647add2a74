// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/decompress.h"

#include <zlib.h>
#include <zstd.h>

#include <memory>

namespace vbdkit::drivers::qcow2 {
namespace {

// Raw deflate; QEMU writes it with windows of 4 KiB, others may use larger ones.
bool inflate_raw(std::span<const uint8_t> from, std::span<uint8_t> to) {
  z_stream stream{};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) return false;
  stream.next_in = const_cast<Bytef*>(from.data());
  stream.avail_in = static_cast<uInt>(from.size());
  stream.next_out = to.data();
  stream.avail_out = static_cast<uInt>(to.size());
  const int result = inflate(&stream, Z_FINISH);
  const bool full = stream.avail_out == 0;
  inflateEnd(&stream);
  // What follows the end of the data is another cluster's.
  return full && (result == Z_STREAM_END || result == Z_BUF_ERROR);
}

bool unzstd(std::span<const uint8_t> from, std::span<uint8_t> to) {
  const std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> context(ZSTD_createDCtx(),
                                                                     &ZSTD_freeDCtx);
  if (context == nullptr) return false;
  ZSTD_inBuffer in{from.data(), from.size(), 0};
  ZSTD_outBuffer out{to.data(), to.size(), 0};
  while (out.pos < out.size) {
    const size_t before = out.pos + in.pos;
    if (ZSTD_isError(ZSTD_decompressStream(context.get(), &out, &in))) return false;
    if (out.pos + in.pos == before) return false;  // no more input
  }
  return true;
}

}  // namespace

bool decompress(Compression method, std::span<const uint8_t> from, std::span<uint8_t> to) {
  return method == Compression::kZstd ? unzstd(from, to) : inflate_raw(from, to);
}

}  // namespace vbdkit::drivers::qcow2
