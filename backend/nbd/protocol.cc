// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/nbd/protocol.h"

#include <cerrno>

#include "base/units.h"

namespace vbdkit::nbd {
namespace {

uint16_t allowed_flags(Command command, bool structured) {
  // FUA is valid on every command, even where it means nothing ("Command flags").
  switch (command) {
    case Command::kRead:
      return structured ? kCmdFua | kCmdDf : kCmdFua;
    case Command::kWriteZeroes:
      return kCmdFua | kCmdNoHole | kCmdFastZero;
    case Command::kBlockStatus:
      return kCmdFua | kCmdReqOne;
    default:
      return kCmdFua;
  }
}

bool known(uint16_t command) { return command <= static_cast<uint16_t>(Command::kBlockStatus); }

bool writes(Command c) {
  return c == Command::kWrite || c == Command::kTrim || c == Command::kWriteZeroes;
}

}  // namespace

WireError to_wire_error(int sys_errno) {
  switch (sys_errno) {
    case 0:
      return WireError::kNone;
    case EPERM:
    case EROFS:
      return WireError::kPerm;
    case ENOMEM:
      return WireError::kNoMem;
    case EINVAL:
      return WireError::kInval;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return WireError::kNoSpace;
    case ESHUTDOWN:
      return WireError::kShutdown;
    default:
      return WireError::kIo;
  }
}

std::optional<RequestHeader> decode_request(std::span<const uint8_t, kRequestSize> in) {
  const uint8_t* p = in.data();
  if (load_be<uint32_t>(p) != kRequestMagic) return std::nullopt;
  RequestHeader h;
  h.flags = load_be<uint16_t>(p + 4);
  h.command = load_be<uint16_t>(p + 6);
  h.cookie = load_be<uint64_t>(p + 8);
  h.offset = load_be<uint64_t>(p + 16);
  h.length = load_be<uint32_t>(p + 24);
  return h;
}

void encode_request(std::span<uint8_t, kRequestSize> out, const RequestHeader& h) {
  uint8_t* p = store_be(out.data(), kRequestMagic);
  p = store_be(p, h.flags);
  p = store_be(p, h.command);
  p = store_be(p, h.cookie);
  p = store_be(p, h.offset);
  store_be(p, h.length);
}

WireError check_request(const RequestHeader& h, const RequestLimits& limits) {
  if (!known(h.command)) return WireError::kInval;
  const auto command = static_cast<Command>(h.command);
  if (h.flags & ~allowed_flags(command, limits.structured)) return WireError::kInval;
  // A flush covers the whole disk; its offset and length are reserved.
  if (command == Command::kFlush) return WireError::kNone;

  if (limits.read_only && writes(command)) return WireError::kPerm;
  if (command == Command::kTrim && !limits.can_trim) return WireError::kInval;
  if (command == Command::kBlockStatus && !limits.contexts) return WireError::kInval;
  if (command == Command::kRead && h.length > kMaxPayload)
    return h.flags & kCmdDf ? WireError::kOverflow : WireError::kInval;
  if (h.length == 0 || (h.offset | h.length) % limits.alignment != 0) return WireError::kInval;
  if (!range_inside(h.offset, h.length, limits.size)) {
    const bool grows = command == Command::kWrite || command == Command::kWriteZeroes;
    return grows ? WireError::kNoSpace : WireError::kInval;
  }
  if (h.flags & kCmdFastZero && !limits.fast_zero) return WireError::kNotSup;
  return WireError::kNone;
}

size_t encode_simple_reply(uint8_t* out, uint64_t cookie, WireError error) {
  uint8_t* p = store_be(out, kSimpleReplyMagic);
  p = store_be(p, static_cast<uint32_t>(error));
  store_be(p, cookie);
  return kSimpleReplySize;
}

size_t encode_chunk_header(uint8_t* out, uint16_t flags, uint16_t type, uint64_t cookie,
                           uint32_t payload) {
  uint8_t* p = store_be(out, kStructuredReplyMagic);
  p = store_be(p, flags);
  p = store_be(p, type);
  p = store_be(p, cookie);
  store_be(p, payload);
  return kChunkHeaderSize;
}

size_t encode_data_chunk(uint8_t* out, uint64_t cookie, uint64_t offset, uint32_t length) {
  const size_t n = encode_chunk_header(out, kReplyDone, kChunkOffsetData, cookie, length + 8);
  store_be(out + n, offset);
  return n + 8;
}

size_t encode_error_chunk(uint8_t* out, uint64_t cookie, WireError error) {
  const size_t n = encode_chunk_header(out, kReplyDone, kChunkError, cookie, 6);
  uint8_t* p = store_be(out + n, static_cast<uint32_t>(error));
  store_be(p, uint16_t{0});  // no message
  return n + 6;
}

}  // namespace vbdkit::nbd
