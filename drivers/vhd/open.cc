// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/vhd/open.h"

#include "drivers/chain/image_file.h"
#include "drivers/chain/raw_layer.h"
#include "drivers/vhd/create.h"
#include "drivers/vhd/metadata.h"
#include "drivers/vhd/read_layer.h"
#include "drivers/vhd/write_layer.h"

namespace vbdkit::drivers::vhd {
namespace {

// The disk's bytes in one piece, and a footer behind them.
class FixedLayer final : public RawLayer {
 public:
  FixedLayer(NodePtr node, const Metadata& metadata, std::string path)
      : RawLayer(std::move(node), metadata.size(), "vhd"), path_(std::move(path)) {
    if (!is_null(metadata.footer.uuid)) info_.uuid = to_string(metadata.footer.uuid);
  }

  Result<void> resize(Bytes size) override {
    VBDKIT_ASSIGN(ImageFile control, ImageFile::open(path_, ImageFile::Mode::kWrite));
    VBDKIT_TRY(grow(control, size));
    VBDKIT_TRY(file().refresh_size());
    VBDKIT_ASSIGN(const Metadata metadata, read_metadata(control));
    info_.size = metadata.size();
    return {};
  }

 private:
  const std::string path_;
};

}  // namespace

Result<std::unique_ptr<Layer>> open_layer(LayerSource source, const LayerContext& context) {
  VBDKIT_ASSIGN(ImageFile control,
                ImageFile::open(source.path, context.read_only ? ImageFile::Mode::kRead
                                                               : ImageFile::Mode::kWrite));
  VBDKIT_ASSIGN(Metadata metadata, read_metadata(control));
  if (metadata.fixed()) {
    std::string path = source.path;
    return std::unique_ptr<Layer>(
        std::make_unique<FixedLayer>(std::move(source.file), metadata, std::move(path)));
  }
  if (!context.read_only)
    return WriteLayer::open(std::move(source), context, std::move(control), std::move(metadata));
  std::optional<ParentReference> parent;
  if (metadata.differencing()) {
    VBDKIT_ASSIGN(parent, read_parent(control, metadata));
  }
  auto batmap = read_batmap(control, metadata);
  return std::unique_ptr<Layer>(std::make_unique<ReadLayer>(
      std::move(source), context, std::move(metadata), std::move(batmap), std::move(parent)));
}

}  // namespace vbdkit::drivers::vhd
