// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For fuzz targets of image formats: a file in memory that holds the input, and a disk on it that
// is read, written, cleared, flushed and closed. Besides not crashing, every request completes, and
// what was written reads back as long as no request failed.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "drivers/chain/chain_node.h"
#include "drivers/qcow2/image.h"

namespace vbdkit::fuzz {

using namespace vbdkit::drivers;

inline void require(bool condition) {
  if (!condition) std::abort();
}

class MemoryFile {
 public:
  // Zeroes follow what is given, up to `size`.
  MemoryFile(std::span<const uint8_t> content, size_t size)
      : fd_(memfd_create("image", MFD_CLOEXEC)),
        path_("/proc/self/fd/" + std::to_string(fd_.get())) {
    const size_t end = std::max(size, content.size());
    require(fd_.valid() && ftruncate(fd_.get(), static_cast<off_t>(end)) == 0);
    require(write(fd_.get(), content.data(), content.size()) ==
            static_cast<ssize_t>(content.size()));
  }
  const std::string& path() const { return path_; }

 private:
  Fd fd_;
  std::string path_;
};

using OpenLayer = Result<std::unique_ptr<Layer>> (*)(LayerSource source,
                                                     const LayerContext& context);

class DiskInUse {
 public:
  // Whether all requests that change the disk succeeded. A parent is not looked for.
  static bool run(const MemoryFile& file, OpenLayer open, bool read_only) {
    const Logger log("fuzz", LogLevel::kError, -1);
    static const auto reactor = io::Reactor::create({.engine = io::EngineKind::kSync}, log);
    auto bytes = qcow2::MetadataFile::open(file.path(), ImageFile::Mode::kWrite);
    require(bytes.ok());
    auto layer =
        open({file.path(), qcow2::make_blocking_node(*bytes)}, {**reactor, log, read_only});
    if (!layer) {
      require(!layer.error().message().empty());
      return false;
    }
    Chain chain;
    chain.layers.push_back(std::move(layer).value());
    chain.paths.push_back(file.path());
    ChainNode node(std::move(chain), {"image", "image:" + file.path(), read_only});
    return DiskInUse(node).use();
  }

 private:
  static constexpr uint64_t kPiece = 8192;  // bytes

  explicit DiskInUse(Node& node) : node_(node) {}

  // File I/O blocks here, so a request has completed when submit() returns. Its errno.
  int submit(Op op, uint64_t offset, uint64_t length, std::vector<uint8_t>* memory) {
    struct Io {
      Request request;  // first
      int error = -1;
    } io;
    const iovec iov{memory != nullptr ? memory->data() : nullptr, length};
    io.request.op = op;
    io.request.flags = op == Op::kWriteZeroes ? kMayUnmap : uint8_t{0};
    io.request.offset = offset;
    io.request.length = length;
    io.request.iov = memory != nullptr ? &iov : nullptr;
    io.request.iov_count = memory != nullptr ? 1 : 0;
    io.request.done = [](Request& r, int error) { reinterpret_cast<Io&>(r).error = error; };
    node_.submit(io.request);
    require(io.error >= 0);
    return io.error;
  }

  bool use() {
    const uint64_t size = align_down(node_.info().size.v, 512);
    if (size < 2 * kPiece) return false;
    std::vector<uint8_t> memory(kPiece);
    const uint64_t last = size - kPiece;
    const uint64_t places[] = {0, kPiece, align_down(size / 2, kPiece), last};
    for (const uint64_t at : places) (void)submit(Op::kRead, at, kPiece, &memory);
    bool failed = false;
    for (const uint64_t at : places) {
      std::fill(memory.begin(), memory.end(), static_cast<uint8_t>(at / 512 + 1));
      failed |= submit(Op::kWrite, at + 512, kPiece - 512, &memory) != 0;
    }
    failed |= submit(Op::kWriteZeroes, 0, kPiece, nullptr) != 0;
    const int discarded = submit(Op::kDiscard, kPiece, kPiece, nullptr);
    failed |= discarded != 0 && discarded != EOPNOTSUPP;
    failed |= submit(Op::kFlush, 0, 0, nullptr) != 0;
    std::fill(memory.begin(), memory.end(), uint8_t{0x77});
    failed |= submit(Op::kWrite, last, kPiece, &memory) != 0;
    std::vector<uint8_t> read(kPiece);
    if (failed || submit(Op::kRead, last, kPiece, &read) != 0) return false;
    require(read == memory);
    if (last < 2 * kPiece) return true;
    failed = submit(Op::kRead, 0, kPiece, &read) != 0;
    require(failed || std::all_of(read.begin(), read.end(), [](uint8_t b) { return b == 0; }));
    return !failed;
  }

  Node& node_;
};

}  // namespace vbdkit::fuzz
