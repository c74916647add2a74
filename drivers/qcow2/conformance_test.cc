// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The conformance suite on qcow2 images of all kinds, alone and on backing files.
#include "drivers/conformance.h"

#include <stdlib.h>
#include <unistd.h>

#include <map>

#include "drivers/qcow2/check.h"
#include "drivers/qcow2/create.h"

namespace vbdkit::drivers::qcow2 {
namespace {

class Qcow2Storage final : public TestStorage {
 public:
  Qcow2Storage(CreateOptions options, unsigned parents, uint64_t size) {
    char name[] = "/var/tmp/vbdkit-qcow2-XXXXXX";
    EXPECT_NE(nullptr, mkdtemp(name));
    directory_ = name;
    options.size = Bytes{size};
    for (unsigned i = 0; i <= parents; ++i) {
      const std::string path = directory_ + "/" + std::to_string(i);
      if (i > 0) {
        options.backing_file = std::to_string(i - 1);
        options.backing_format = "qcow2";
        options.preallocation = Preallocation::kOff;
      }
      const auto created = create_image(path, options);
      EXPECT_TRUE(created.ok()) << created.error().message();
      paths_.push_back(path);
    }
  }
  ~Qcow2Storage() override {
    check(paths_.back());
    for (const std::string& path : paths_) unlink(path.c_str());
    rmdir(directory_.c_str());
  }

  Result<NodePtr> open(const OpenContext& context, const Wrap&) override {
    VBDKIT_ASSIGN(const GraphSpec graph, parse_graph("qcow2:" + paths_.back()));
    return open_graph(graph, context);
  }

 private:
  // Whatever was done to it: nothing leaked, nothing wrong, in our eyes and QEMU's.
  static void check(const std::string& path) {
    const auto ours = check_image(path, Repair::kNone);
    ASSERT_TRUE(ours.ok()) << ours.error().message();
    EXPECT_TRUE(ours->clean()) << ours->corruptions << " corruptions, " << ours->leaks
                               << " leaks: " << testing::PrintToString(ours->messages);
    const std::string command = "qemu-img check -q -f qcow2 " + path;
    EXPECT_EQ(0, system(command.c_str()));
  }

  std::string directory_;
  std::vector<std::string> paths_;
};

using Options = std::map<std::string, std::string>;

Subject subject(std::string name, const Options& options, unsigned parents = 0) {
  const auto parsed = parse_create_options(Bytes{}, options);
  EXPECT_TRUE(parsed.ok()) << parsed.error().message();
  return {.name = std::move(name), .create = [o = *parsed, parents](uint64_t size) {
            return std::make_unique<Qcow2Storage>(o, parents, size);
          }};
}

std::vector<Subject> subjects() {
  return {
      subject("Clusters512", {{"cluster_size", "512"}}),
      subject("Clusters4K", {{"cluster_size", "4K"}}),
      subject("Clusters64K", {}),
      subject("Clusters2M", {{"cluster_size", "2M"}}),
      subject("Version2", {{"compat", "v2"}}),
      subject("Extended16K", {{"cluster_size", "16K"}, {"extended_l2", "on"}}),
      subject("Extended64K", {{"extended_l2", "on"}}),
      subject("Extended2M", {{"cluster_size", "2M"}, {"extended_l2", "on"}}),
      subject("Lazy", {{"lazy_refcounts", "on"}}),
      subject("Refcounts1", {{"cluster_size", "4K"}, {"refcount_bits", "1"}}),
      subject("Refcounts64", {{"cluster_size", "512"}, {"refcount_bits", "64"}}),
      subject("Preallocated", {{"preallocation", "metadata"}}),
      subject("ChainOf2", {}, 1),
      subject("ChainOf2Clusters512", {{"cluster_size", "512"}}, 1),
      subject("ChainOf2Extended", {{"extended_l2", "on"}}, 1),
      subject("ChainOf2Version2", {{"compat", "v2"}}, 1),
      subject("ChainOf8", {{"cluster_size", "4K"}}, 7),
  };
}

INSTANTIATE_TEST_SUITE_P(Qcow2, NodeConformance, testing::ValuesIn(subjects()), subject_name);

}  // namespace
}  // namespace vbdkit::drivers::qcow2
