// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The NBD protocol on the wire: magics, numbers, and the layout of what is sent during
// transmission. Source: doc/proto.md of the NBD project ("Values", "Request message", "Simple reply
// message", "Structured reply chunk message"). All integers are big-endian. Pure functions over
// bytes: no I/O, no allocation, any thread; fuzzed by tests/fuzz/nbd_fuzz.cc.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

namespace vbdkit::nbd {

// Handshake magics and flags.
inline constexpr uint64_t kMagic = 0x4e42444d41474943;        // "NBDMAGIC"
inline constexpr uint64_t kOptionMagic = 0x49484156454f5054;  // "IHAVEOPT"
inline constexpr uint64_t kOptionReplyMagic = 0x0003e889045565a9;
inline constexpr uint16_t kFlagFixedNewstyle = 1 << 0;
inline constexpr uint16_t kFlagNoZeroes = 1 << 1;
inline constexpr uint32_t kClientFixedNewstyle = 1 << 0;
inline constexpr uint32_t kClientNoZeroes = 1 << 1;

enum class Option : uint32_t {
  kExportName = 1,
  kAbort = 2,
  kList = 3,
  kStartTls = 5,
  kInfo = 6,
  kGo = 7,
  kStructuredReply = 8,
  kListMetaContext = 9,
  kSetMetaContext = 10,
};

enum class OptionReply : uint32_t {
  kAck = 1,
  kServer = 2,
  kInfo = 3,
  kMetaContext = 4,
  kErrUnsup = 0x80000001,
  kErrPolicy = 0x80000002,
  kErrInvalid = 0x80000003,
  kErrUnknown = 0x80000006,
  kErrTooBig = 0x80000009,
};

enum class Info : uint16_t { kExport = 0, kName = 1, kDescription = 2, kBlockSize = 3 };

// Transmission flags.
inline constexpr uint16_t kHasFlags = 1 << 0;
inline constexpr uint16_t kReadOnly = 1 << 1;
inline constexpr uint16_t kSendFlush = 1 << 2;
inline constexpr uint16_t kSendFua = 1 << 3;
inline constexpr uint16_t kRotational = 1 << 4;
inline constexpr uint16_t kSendTrim = 1 << 5;
inline constexpr uint16_t kSendWriteZeroes = 1 << 6;
inline constexpr uint16_t kSendDf = 1 << 7;
inline constexpr uint16_t kCanMultiConn = 1 << 8;
inline constexpr uint16_t kSendCache = 1 << 10;
inline constexpr uint16_t kSendFastZero = 1 << 11;

// Transmission.
inline constexpr uint32_t kRequestMagic = 0x25609513;
inline constexpr uint32_t kSimpleReplyMagic = 0x67446698;
inline constexpr uint32_t kStructuredReplyMagic = 0x668e33ef;

enum class Command : uint16_t {
  kRead = 0,
  kWrite = 1,
  kDisc = 2,
  kFlush = 3,
  kTrim = 4,
  kCache = 5,
  kWriteZeroes = 6,
  kBlockStatus = 7,
};

inline constexpr uint16_t kCmdFua = 1 << 0;
inline constexpr uint16_t kCmdNoHole = 1 << 1;
inline constexpr uint16_t kCmdDf = 1 << 2;
inline constexpr uint16_t kCmdReqOne = 1 << 3;
inline constexpr uint16_t kCmdFastZero = 1 << 4;

inline constexpr uint16_t kReplyDone = 1 << 0;
inline constexpr uint16_t kChunkNone = 0;
inline constexpr uint16_t kChunkOffsetData = 1;
inline constexpr uint16_t kChunkBlockStatus = 5;
inline constexpr uint16_t kChunkError = (1 << 15) + 1;

inline constexpr uint32_t kStateHole = 1 << 0;
inline constexpr uint32_t kStateZero = 1 << 1;
inline constexpr uint32_t kStateDirty = 1 << 0;  // in the context of a dirty bitmap

// Errors on the wire; their numbers are fixed whatever the system's errno values are.
enum class WireError : uint32_t {
  kNone = 0,
  kPerm = 1,
  kIo = 5,
  kNoMem = 12,
  kInval = 22,
  kNoSpace = 28,
  kOverflow = 75,
  kNotSup = 95,
  kShutdown = 108,
};
WireError to_wire_error(int sys_errno);

inline constexpr uint32_t kMaxPayload = 32u << 20;  // what every client may count on
inline constexpr uint32_t kMaxStringLength = 4096;  // names, queries ("Conventions")

template <typename T>
constexpr T to_big_endian(T v) {
  static_assert(std::endian::native == std::endian::little && sizeof(T) > 1);
  if constexpr (sizeof(T) == 2) return static_cast<T>(__builtin_bswap16(v));
  if constexpr (sizeof(T) == 4) return static_cast<T>(__builtin_bswap32(v));
  if constexpr (sizeof(T) == 8) return static_cast<T>(__builtin_bswap64(v));
}

template <typename T>
T load_be(const uint8_t* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return to_big_endian(v);
}

template <typename T>
uint8_t* store_be(uint8_t* p, T v) {
  v = to_big_endian(v);
  std::memcpy(p, &v, sizeof v);
  return p + sizeof v;
}

inline constexpr size_t kRequestSize = 28;

struct RequestHeader {
  uint16_t flags = 0;
  uint16_t command = 0;  // a Command, or what the client made up
  uint64_t cookie = 0;   // opaque
  uint64_t offset = 0;   // bytes
  uint32_t length = 0;   // bytes
};

// Nothing where the magic is wrong: the stream has lost its framing and cannot be trusted further.
std::optional<RequestHeader> decode_request(std::span<const uint8_t, kRequestSize> in);
void encode_request(std::span<uint8_t, kRequestSize> out, const RequestHeader& header);

// What a client negotiated and what the disk can do, as far as requests are judged by it.
struct RequestLimits {
  uint64_t size = 0;       // bytes
  uint32_t alignment = 1;  // bytes, power of two
  bool read_only = false;
  bool can_trim = false;
  bool fast_zero = false;  // zeroes are written natively
  bool structured = false;
  bool contexts = false;  // at least one metadata context is selected
};

// What to answer before anything is done: kNone where the request may be carried out.
// kWrite with a length over kMaxPayload is not for this function: it ends the connection.
WireError check_request(const RequestHeader& header, const RequestLimits& limits);

inline constexpr size_t kSimpleReplySize = 16;
inline constexpr size_t kChunkHeaderSize = 20;
inline constexpr size_t kMaxReplyHeaderSize = 28;

// Each returns how many bytes it wrote to `out`; the data of a read follows them.
size_t encode_simple_reply(uint8_t* out, uint64_t cookie, WireError error);
size_t encode_chunk_header(uint8_t* out, uint16_t flags, uint16_t type, uint64_t cookie,
                           uint32_t payload);
size_t encode_data_chunk(uint8_t* out, uint64_t cookie, uint64_t offset, uint32_t length);
size_t encode_error_chunk(uint8_t* out, uint64_t cookie, WireError error);

}  // namespace vbdkit::nbd
