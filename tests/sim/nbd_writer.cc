// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/nbd_writer.h"

#include <algorithm>

namespace vbdkit::sim {
namespace {

constexpr size_t kSector = StampedDisk::kSector;
constexpr uint64_t kMostSectors = 256;

Error nbd_error(const std::string& what) {
  const char* const why = nbd_get_error();
  return Error(ErrorKind::kIo, what + ": " + (why != nullptr ? why : "failed"));
}

}  // namespace

Result<void> NbdWriter::connect(const std::string& socket) {
  for (Slot& slot : slots_) slot.busy = false;
  nbd_.reset(nbd_create());
  if (nbd_ == nullptr) return nbd_error("libnbd");
  if (nbd_connect_unix(nbd_.get(), socket.c_str()) < 0) return nbd_error("connect to " + socket);
  return {};
}

uint64_t NbdWriter::size() const {
  const int64_t size = nbd_get_size(nbd_.get());
  return size < 0 ? 0 : static_cast<uint64_t>(size);
}

bool NbdWriter::races(uint64_t sector, uint64_t count, bool change) const {
  return std::any_of(slots_.begin(), slots_.end(), [&](const Slot& s) {
    return s.busy && (change || s.what == What::kWrite || s.what == What::kZero) &&
           s.sector < sector + count && sector < s.sector + s.count;
  });
}

// False where the request that was drawn would race.
bool NbdWriter::start(Slot& slot) {
  const uint64_t roll = pick(100);
  slot.what = roll < 3    ? What::kFlush
              : roll < 6  ? What::kZero
              : roll < 55 ? What::kWrite
                          : What::kRead;
  slot.count = slot.what == What::kFlush ? 0 : 1 + pick(pick(8) == 0 ? kMostSectors : 16);
  slot.sector = pick(model_.sectors() - slot.count);
  const bool change = slot.what == What::kWrite || slot.what == What::kZero;
  if (slot.what != What::kFlush && races(slot.sector, slot.count, change)) return false;
  slot.busy = true;
  slot.answered = false;
  slot.data.assign(slot.what == What::kZero ? 0 : slot.count * kSector, std::byte{0xee});
  if (change) slot.stamp = model_.begin(slot.sector, slot.count, slot.what == What::kZero);
  const nbd_completion_callback done{[](void* user, int* error) {
                                       Slot& answered = *static_cast<Slot*>(user);
                                       answered.error = *error;
                                       answered.answered = true;
                                       return 1;
                                     },
                                     &slot, nullptr};
  const uint64_t offset = slot.sector * kSector;
  int64_t cookie = -1;
  switch (slot.what) {
    case What::kRead:
      cookie = nbd_aio_pread(nbd_.get(), slot.data.data(), slot.data.size(), offset, done, 0);
      break;
    case What::kWrite:
      model_.fill(slot.stamp, slot.sector, slot.data);
      cookie = nbd_aio_pwrite(nbd_.get(), slot.data.data(), slot.data.size(), offset, done,
                              pick(32) == 0 ? LIBNBD_CMD_FLAG_FUA : 0);
      break;
    case What::kZero:
      cookie = nbd_aio_zero(nbd_.get(), slot.count * kSector, offset, done,
                            pick(2) == 0 ? LIBNBD_CMD_FLAG_NO_HOLE : 0);
      break;
    case What::kFlush:
      slot.since = model_.since();
      cookie = nbd_aio_flush(nbd_.get(), done, 0);
      break;
  }
  if (cookie < 0) {
    slot.error = EIO;
    slot.answered = true;
  }
  return true;
}

Result<void> NbdWriter::settle() {
  for (Slot& slot : slots_) {
    if (!slot.busy || !slot.answered) continue;
    if (slot.error != 0)
      return Error::from_errno(slot.error, "request at sector " + std::to_string(slot.sector));
    ++requests_;
    slot.busy = false;
    if (slot.what == What::kRead) {
      if (const auto wrong = model_.wrong(slot.sector, slot.data); wrong && problem_.empty())
        problem_ = *wrong;
    } else if (slot.what == What::kFlush) {
      model_.flushed(std::move(slot.since));
    } else {
      model_.end(slot.stamp);
    }
  }
  return {};
}

Result<void> NbdWriter::run(unsigned requests) {
  unsigned begun = 0;
  for (;;) {
    size_t busy = 0;
    for (Slot& slot : slots_) {
      if (!slot.busy && begun < requests && start(slot)) ++begun;
      if (slot.busy) ++busy;
    }
    if (busy == 0 && begun == requests) return {};
    if (busy > 0 && nbd_poll(nbd_.get(), -1) < 0) return nbd_error("a disk in use");
    VBDKIT_TRY(settle());
  }
}

Result<std::vector<std::byte>> NbdWriter::read_all() {
  constexpr size_t kPiece = 1 << 20;
  std::vector<std::byte> content(size());
  for (size_t at = 0; at < content.size(); at += kPiece)
    if (nbd_pread(nbd_.get(), content.data() + at, std::min(kPiece, content.size() - at), at, 0) <
        0)
      return nbd_error("read");
  return content;
}

}  // namespace vbdkit::sim
