// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/image.h"

#include <array>

namespace vbdkit::drivers::qcow2 {
namespace {

class BlockingNode final : public Node {
 public:
  explicit BlockingNode(MetadataFile& file) : file_(file) { update(); }

  std::string_view driver() const override { return "raw"; }
  std::string spec() const override { return "raw:" + file_.path(); }
  const NodeInfo& info() const override { return info_; }

  void submit(Request& request) override { request.done(request, perform(request)); }
  void block_status(StatusRequest& request) override { request.done(EOPNOTSUPP); }

  Result<void> refresh_size() override {
    VBDKIT_TRY(file_.refresh());
    update();
    return {};
  }
  Result<void> resize(Bytes size) override {
    VBDKIT_TRY(file_.set_size(size.v));
    update();
    return {};
  }
  Result<void> reopen(bool) override {
    return Error(ErrorKind::kUnsupported, file_.path() + ": is being closed");
  }

 private:
  void update() { info_.size = Bytes{file_.size()}; }

  int perform(const Request& request) {
    Result<void> result;
    uint64_t at = request.offset;
    if (request.op == Op::kFlush) result = file_.sync();
    if (request.op == Op::kDiscard) return EOPNOTSUPP;
    if (request.op == Op::kWriteZeroes) {
      const std::array<uint8_t, 4096> zeroes{};
      for (uint64_t left = request.length; left > 0 && result;) {
        const size_t n = static_cast<size_t>(std::min<uint64_t>(left, zeroes.size()));
        result = file_.write(at, std::span(zeroes).first(n));
        at += n;
        left -= n;
      }
    }
    for (uint32_t i = 0; i < request.iov_count && result; ++i) {
      const std::span<uint8_t> piece(static_cast<uint8_t*>(request.iov[i].iov_base),
                                     request.iov[i].iov_len);
      result = request.op == Op::kRead ? file_.read(at, piece) : file_.write(at, piece);
      at += piece.size();
    }
    return result ? 0 : result.error().sys_errno();
  }

  MetadataFile& file_;
  NodeInfo info_;
};

}  // namespace

NodePtr make_blocking_node(MetadataFile& file) { return std::make_unique<BlockingNode>(file); }

Task<int> Image::write_header() {
  const Buffer sector(kSectorSize);
  const int error = co_await read(0, sector.span());
  if (error != 0) co_return error;
  uint8_t* const at = sector.data();
  store_be(at + kSizeField, header.size);
  store_be(at + kL1EntriesField, header.l1_entries);
  store_be(at + kL1OffsetField, header.l1_offset);
  store_be(at + kRefcountTableField, header.refcount_table_offset);
  store_be(at + kRefcountTableClustersField, header.refcount_table_clusters);
  if (header.version >= 3) {
    store_be(at + kIncompatibleField, header.incompatible);
    store_be(at + kAutoclearField, header.autoclear);
  }
  co_return co_await write(0, sector.span());
}

int Image::mark_corrupt(const std::string& what) {
  if (std::exchange(corrupt, true)) return EIO;
  log.error("qcow2: %s: %s; no more writes to it", path().c_str(), what.c_str());
  if (read_only || header.version < 3) return EIO;
  // The last thing written to it, so this may block.
  header.incompatible |= kCorruptBit;
  std::array<uint8_t, 8> field;
  store_be(field.data(), header.incompatible);
  if (const auto written = blocking.write(kIncompatibleField, field); !written)
    log.error("qcow2: %s", written.error().message().c_str());
  return EIO;
}

}  // namespace vbdkit::drivers::qcow2
