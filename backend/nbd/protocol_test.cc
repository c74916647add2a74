// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/nbd/protocol.h"

#include <gtest/gtest.h>

#include <array>
#include <cerrno>

namespace vbdkit::nbd {
namespace {

RequestHeader request(Command command, uint64_t offset, uint32_t length, uint16_t flags = 0) {
  RequestHeader h;
  h.flags = flags;
  h.command = static_cast<uint16_t>(command);
  h.offset = offset;
  h.length = length;
  return h;
}

// 1 MiB, 512-byte blocks, everything allowed.
RequestLimits limits() {
  RequestLimits l;
  l.size = 1 << 20;
  l.alignment = 512;
  l.can_trim = true;
  l.fast_zero = true;
  l.structured = true;
  l.contexts = true;
  return l;
}

TEST(NbdRequest, DecodesTheDocumentedLayout) {
  const std::array<uint8_t, kRequestSize> wire = {
      0x25, 0x60, 0x95, 0x13,                          // magic
      0x00, 0x03, 0x00, 0x06,                          // flags, command
      0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08,  // cookie
      0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x02, 0x00,  // offset
      0x00, 0x00, 0x10, 0x00,                          // length
  };
  const auto h = decode_request(wire);
  ASSERT_TRUE(h);
  EXPECT_EQ(h->flags, kCmdFua | kCmdNoHole);
  EXPECT_EQ(h->command, static_cast<uint16_t>(Command::kWriteZeroes));
  EXPECT_EQ(h->cookie, 0x0102030405060708u);
  EXPECT_EQ(h->offset, 0x100000200u);
  EXPECT_EQ(h->length, 4096u);

  std::array<uint8_t, kRequestSize> again;
  encode_request(again, *h);
  EXPECT_EQ(again, wire);
}

TEST(NbdRequest, IsNothingWithoutItsMagic) {
  std::array<uint8_t, kRequestSize> wire{};
  EXPECT_FALSE(decode_request(wire));
}

TEST(NbdCheck, AcceptsTheLastBlockAndNothingBeyond) {
  const uint32_t end = 1 << 20;
  for (Command c : {Command::kRead, Command::kWrite, Command::kTrim, Command::kWriteZeroes,
                    Command::kCache, Command::kBlockStatus}) {
    EXPECT_EQ(check_request(request(c, end - 512, 512), limits()), WireError::kNone);
    const bool grows = c == Command::kWrite || c == Command::kWriteZeroes;
    EXPECT_EQ(check_request(request(c, end - 512, 1024), limits()),
              grows ? WireError::kNoSpace : WireError::kInval);
    EXPECT_NE(check_request(request(c, end, 512), limits()), WireError::kNone);
    // offset + length wraps around to something inside.
    EXPECT_NE(check_request(request(c, UINT64_MAX - 511, 1024), limits()), WireError::kNone);
  }
}

TEST(NbdCheck, RefusesWhatIsNotAligned) {
  EXPECT_EQ(check_request(request(Command::kRead, 1, 512), limits()), WireError::kInval);
  EXPECT_EQ(check_request(request(Command::kWrite, 512, 513), limits()), WireError::kInval);
  RequestLimits bytes = limits();
  bytes.alignment = 1;
  EXPECT_EQ(check_request(request(Command::kRead, 1, 3), bytes), WireError::kNone);
}

TEST(NbdCheck, RefusesEmptyRequestsButFlush) {
  EXPECT_EQ(check_request(request(Command::kRead, 0, 0), limits()), WireError::kInval);
  EXPECT_EQ(check_request(request(Command::kTrim, 0, 0), limits()), WireError::kInval);
  EXPECT_EQ(check_request(request(Command::kFlush, 0, 0), limits()), WireError::kNone);
}

TEST(NbdCheck, ReadOnlyRefusesAllThatWritesAndNothingElse) {
  RequestLimits l = limits();
  l.read_only = true;
  for (Command c : {Command::kWrite, Command::kTrim, Command::kWriteZeroes})
    EXPECT_EQ(check_request(request(c, 0, 512), l), WireError::kPerm);
  for (Command c : {Command::kRead, Command::kCache, Command::kBlockStatus})
    EXPECT_EQ(check_request(request(c, 0, 512), l), WireError::kNone);
}

TEST(NbdCheck, FlagsAreTakenOnlyWhereTheyBelong) {
  EXPECT_EQ(check_request(request(Command::kRead, 0, 512, kCmdFua), limits()), WireError::kNone);
  EXPECT_EQ(check_request(request(Command::kRead, 0, 512, kCmdDf), limits()), WireError::kNone);
  EXPECT_EQ(check_request(request(Command::kWrite, 0, 512, kCmdDf), limits()), WireError::kInval);
  EXPECT_EQ(check_request(request(Command::kWrite, 0, 512, kCmdNoHole), limits()),
            WireError::kInval);
  EXPECT_EQ(check_request(request(Command::kRead, 0, 512, kCmdReqOne), limits()),
            WireError::kInval);
  EXPECT_EQ(check_request(request(Command::kWrite, 0, 512, 1 << 5), limits()), WireError::kInval);
  RequestLimits simple = limits();
  simple.structured = false;
  EXPECT_EQ(check_request(request(Command::kRead, 0, 512, kCmdDf), simple), WireError::kInval);
}

TEST(NbdCheck, FastZeroFailsFastWhereZeroesAreSlow) {
  RequestLimits l = limits();
  l.fast_zero = false;
  EXPECT_EQ(check_request(request(Command::kWriteZeroes, 0, 512, kCmdFastZero), l),
            WireError::kNotSup);
  EXPECT_EQ(check_request(request(Command::kWriteZeroes, 0, 512), l), WireError::kNone);
}

TEST(NbdCheck, BlockStatusNeedsAContext) {
  RequestLimits l = limits();
  l.contexts = false;
  EXPECT_EQ(check_request(request(Command::kBlockStatus, 0, 512), l), WireError::kInval);
}

TEST(NbdCheck, ReadsAreBoundedButEffectsAreNot) {
  RequestLimits l = limits();
  l.size = uint64_t{8} << 30;
  EXPECT_EQ(check_request(request(Command::kRead, 0, kMaxPayload), l), WireError::kNone);
  EXPECT_EQ(check_request(request(Command::kRead, 0, kMaxPayload + 512), l), WireError::kInval);
  EXPECT_EQ(check_request(request(Command::kRead, 0, kMaxPayload + 512, kCmdDf), l),
            WireError::kOverflow);
  EXPECT_EQ(check_request(request(Command::kWriteZeroes, 0, 0xfffffe00), l), WireError::kNone);
}

TEST(NbdCheck, UnknownCommandsAreInvalid) {
  RequestHeader h = request(Command::kRead, 0, 512);
  h.command = 8;
  EXPECT_EQ(check_request(h, limits()), WireError::kInval);
  h.command = 0xffff;
  EXPECT_EQ(check_request(h, limits()), WireError::kInval);
}

TEST(NbdReply, HasTheDocumentedLayout) {
  uint8_t out[kMaxReplyHeaderSize];
  ASSERT_EQ(encode_simple_reply(out, 0x1122334455667788, WireError::kNoSpace), 16u);
  const uint8_t simple[] = {0x67, 0x44, 0x66, 0x98, 0,    0,    0,    28,
                            0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88};
  EXPECT_EQ(0, memcmp(out, simple, sizeof simple));

  ASSERT_EQ(encode_data_chunk(out, 7, 0x2000, 512), 28u);
  const uint8_t data[] = {0x66, 0x8e, 0x33, 0xef, 0, 1, 0,    1,   // magic, done, OFFSET_DATA
                          0,    0,    0,    0,    0, 0, 0,    7,   // cookie
                          0,    0,    2,    8,                     // length
                          0,    0,    0,    0,    0, 0, 0x20, 0};  // offset
  EXPECT_EQ(0, memcmp(out, data, sizeof data));

  ASSERT_EQ(encode_error_chunk(out, 7, WireError::kIo), 26u);
  EXPECT_EQ(load_be<uint16_t>(out + 6), kChunkError);
  EXPECT_EQ(load_be<uint32_t>(out + 16), 6u);
  EXPECT_EQ(load_be<uint32_t>(out + 20), 5u);
}

TEST(NbdError, KeepsToTheNumbersOfTheProtocol) {
  EXPECT_EQ(to_wire_error(0), WireError::kNone);
  EXPECT_EQ(to_wire_error(EROFS), WireError::kPerm);
  EXPECT_EQ(to_wire_error(EDQUOT), WireError::kNoSpace);
  EXPECT_EQ(to_wire_error(EFBIG), WireError::kNoSpace);
  EXPECT_EQ(to_wire_error(ENODEV), WireError::kIo);
  // ENOTSUP is reserved for fast zeroes.
  EXPECT_EQ(to_wire_error(EOPNOTSUPP), WireError::kIo);
}

}  // namespace
}  // namespace vbdkit::nbd
