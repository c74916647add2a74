// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The conformance suite on VHDs of each type, alone and on parents.
#include "drivers/conformance.h"

#include <unistd.h>

#include "drivers/vhd/create.h"

namespace vbdkit::drivers::vhd {
namespace {

struct Layout {
  CreateOptions options{};
  unsigned parents = 0;  // empty dynamic and differencing images beneath
  bool raw_base = false;
  std::string spec_options{};
};

class VhdStorage final : public TestStorage {
 public:
  VhdStorage(const Layout& layout, uint64_t size) : options_(layout.spec_options) {
    char name[] = "/var/tmp/vbdkit-vhd-XXXXXX";
    EXPECT_NE(nullptr, mkdtemp(name));
    directory_ = name;
    if (layout.raw_base) {
      paths_.push_back(directory_ + "/base");
      Fd base(::open(paths_.back().c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
      EXPECT_EQ(0, ftruncate(base.get(), static_cast<off_t>(size)));
    }
    for (unsigned i = 0; i <= layout.parents; ++i) {
      CreateOptions options = layout.options;
      options.size = Bytes{size};
      if (!paths_.empty()) {
        options.type = DiskType::kDifferencing;
        options.parent = paths_.back();
        options.raw_parent = layout.raw_base && i == 0;
      }
      paths_.push_back(directory_ + "/" + std::to_string(i));
      const auto created = create(paths_.back(), options);
      EXPECT_TRUE(created.ok()) << created.error().message();
    }
  }
  ~VhdStorage() override {
    for (const std::string& path : paths_) unlink(path.c_str());
    rmdir(directory_.c_str());
  }

  Result<NodePtr> open(const OpenContext& context, const Wrap&) override {
    VBDKIT_ASSIGN(const GraphSpec graph, parse_graph("vhd" + options_ + ":" + paths_.back()));
    return open_graph(graph, context);
  }

 private:
  std::string options_;
  std::string directory_;
  std::vector<std::string> paths_;
};

Subject subject(std::string name, Layout layout) {
  return {.name = std::move(name),
          .create = [layout = std::move(layout)](
                        uint64_t size) { return std::make_unique<VhdStorage>(layout, size); },
          .resizable = false};  // it only grows: resize_test.cc
}

std::vector<Subject> subjects() {
  const CreateOptions small{.block_size = kMinBlock};
  return {
      subject("Fixed", {.options = {.type = DiskType::kFixed}}),
      subject("Dynamic", {}),
      subject("DynamicWithoutBatmap", {.options = {.batmap = false}}),
      subject("DynamicSmallBlocks", {.options = small}),
      subject("DynamicInPageCache", {.options = small, .spec_options = ",direct=off"}),
      subject("OnRawParent", {.raw_base = true, .spec_options = ",raw-parent=on"}),
      subject("ChainOf2", {.parents = 1}),
      subject("ChainOf3SmallBlocks", {.options = small, .parents = 2}),
      subject("ChainOf3SmallestMap", {.parents = 2, .spec_options = ",map-memory=0"}),
      subject("ChainOf30", {.options = small, .parents = 29}),
  };
}

INSTANTIATE_TEST_SUITE_P(Vhd, NodeConformance, testing::ValuesIn(subjects()), subject_name);

}  // namespace
}  // namespace vbdkit::drivers::vhd
