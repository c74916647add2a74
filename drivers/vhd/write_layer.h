// SPDX-License-Identifier: LGPL-2.1-or-later
//
// WriteLayer: a dynamic or differencing VHD as the leaf of a chain. Sector bitmaps make copying
// from parents unnecessary: a write goes to its place at once, in a block that is added in memory
// where there is none, and any number of blocks may be added at a time. What the write changed in
// bitmaps and table stays in memory until a flush, which makes the data durable first.
//
// Dirty bitmaps are bounded: a write beyond the limit starts a flush and waits for it.
// VHD has no mark for zeroes: zeroes are written (or holes made) in the file where a parent would
// show through, or the block is there; elsewhere nothing is needed. A discard makes holes in the
// file and leaves the block its place.
//
// The reactor's thread. The destructor writes what was not flushed, and takes back the room that
// the file was grown by in advance.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/log.h"
#include "drivers/chain/image_file.h"
#include "drivers/chain/layer.h"
#include "drivers/request_queue.h"
#include "drivers/vhd/bitmap_cache.h"
#include "drivers/vhd/block_map.h"
#include "drivers/vhd/metadata.h"

namespace vbdkit::drivers::vhd {

class WriteLayer final : public Layer {
 public:
  static constexpr size_t kDirtyLimit = 1024;  // bitmaps

  // `control`: the same file as source.file, opened for writing.
  static Result<std::unique_ptr<Layer>> open(LayerSource source, const LayerContext& context,
                                             ImageFile control, Metadata metadata,
                                             size_t dirty_limit = kDirtyLimit);
  ~WriteLayer() override;

  const LayerInfo& info() const override { return info_; }
  Node& file() override { return *file_; }
  const ParentReference* parent() const override { return parent_ ? &*parent_ : nullptr; }
  void map(MapRequest& request) override;
  void read_special(Request& request) override { request.done(request, EIO); }
  void write(Request& request) override;
  void discard(Request& request) override { change_blocks_in_place(request); }
  void write_zeroes(Request& request) override;
  void flush(Request& request) override;
  Result<void> resize(Bytes size) override;
  Result<void> settle() override { return write_all(); }
  Result<void> reload_parent() override;
  void set_chain(MapListener& listener, ParentReader&) override { listener_ = &listener; }

  size_t dirty_bitmaps() const { return dirty_.size(); }

 private:
  struct Write;
  struct Piece;
  struct Mapping;
  enum class Stage { kIdle, kData, kFirst, kFirstDurable, kSecond, kSecondDurable };
  struct FlushIo {
    Request request;  // first: `done` gets the rest from it
    iovec iov{};
    WriteLayer* layer = nullptr;
  };

  WriteLayer(LayerSource source, const LayerContext& context, ImageFile control,
             std::optional<ParentReference> parent, BlockMap blocks, size_t dirty_limit);

  // Requests, cut at blocks.
  Write& begin(Request& request);
  template <typename Fn>
  void for_each_block(const Request& request, Fn fn);
  void start_write(Request& request);
  void change_blocks_in_place(Request& request);
  Piece& make_piece(Write& write, uint32_t block, uint32_t first, uint32_t count, uint64_t skip);
  void start_piece(Piece& piece);
  void submit_piece(Piece& piece);
  void piece_done(Piece& piece, int error);
  void finish_piece(Piece& piece, int error);
  void release(Write& write);
  void mark_dirty(Bitmap& bitmap);

  void answer(Mapping& mapping);

  // The flush in progress (write_layer_flush.cc).
  void start_flush();
  void enter(Stage stage);
  void sync_file();
  void write_chunks(const std::vector<FlushPlan::Chunk>& chunks);
  void stage_done(int error);
  void end_flush(int error);
  FlushPlan make_plan();
  void drop_plan(bool written);
  // The same with blocking I/O, and the file's end put in order: when no request is in flight.
  Result<void> finish();
  Result<void> write_all();
  Result<void> write_plan();
  Result<void> write_now(const std::vector<FlushPlan::Chunk>& chunks);
  Result<void> trim();

  const std::string path_;
  const Logger& log_;
  RateLimit complaints_;
  NodePtr file_;
  ImageFile control_;
  std::optional<ParentReference> parent_;
  LayerInfo info_;
  BlockMap blocks_;
  BitmapCache bitmaps_;
  const size_t dirty_limit_;
  MapListener* listener_ = nullptr;

  std::vector<Bitmap*> dirty_;
  RequestQueue held_;  // writes that wait for a flush, as there are too many dirty bitmaps

  Stage stage_ = Stage::kIdle;
  FlushPlan plan_;
  RequestQueue flushes_;          // answered by the flush in progress
  RequestQueue flushes_waiting_;  // came later
  FlushIo sync_;
  std::vector<FlushIo> chunk_writes_;
  size_t chunks_pending_ = 0;
  int flush_error_ = 0;

  std::vector<std::unique_ptr<Write>> writes_;
  std::vector<std::unique_ptr<Piece>> pieces_;
  Write* idle_writes_ = nullptr;
  Piece* idle_pieces_ = nullptr;
};

}  // namespace vbdkit::drivers::vhd
