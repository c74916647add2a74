// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/chain/open_chain.h"

#include "drivers/drivers.h"
#include "drivers/options.h"

namespace vbdkit::drivers {
namespace {

class ChainOpener {
 public:
  ChainOpener(const NodeSpec& spec, ChainPolicy policy, const OpenContext& context)
      : spec_(spec), policy_(policy), context_(context), steps_(spec.driver) {}

  Result<Chain> open();

 private:
  Result<void> add(const std::string& path, const std::string& format);
  Result<void> add_parent(const ParentReference& reference);
  const NodeSpec& spec_;
  const ChainPolicy policy_;
  const OpenContext& context_;
  Chain chain_;
  ChainSteps steps_;
};

Result<Chain> ChainOpener::open() {
  auto added = add(spec_.path, spec_.driver);
  while (added) {
    const ParentReference* reference = chain_.layers.back()->parent();
    if (reference == nullptr) {
      chain_.paths = steps_.paths();
      return std::move(chain_);
    }
    added = add_parent(*reference);
  }
  return steps_.failed(std::move(added).error());
}

Result<void> ChainOpener::add_parent(const ParentReference& reference) {
  if (reference.format == "raw" && !policy_.raw_parent)
    return Error(ErrorKind::kPermission, "its parent " + reference.path +
                                             " is a raw file, which raw-parent=on would allow");
  VBDKIT_TRY(steps_.check(reference));
  const ParentReference wanted = reference;
  VBDKIT_TRY(add(wanted.path, wanted.format));
  VBDKIT_TRY(steps_.check_identity(wanted, chain_.layers.back()->info().uuid));
  // Copying an image changes its time, so this says little by itself.
  if (wanted.modified != 0 && wanted.modified != steps_.modified())
    context_.log.info("%s: %s: its parent %s has another modification time than when it was made",
                      spec_.driver.c_str(), steps_.paths()[steps_.paths().size() - 2].c_str(),
                      steps_.paths().back().c_str());
  return {};
}

Result<void> ChainOpener::add(const std::string& path, const std::string& format) {
  VBDKIT_TRY(steps_.add(path));
  VBDKIT_ASSIGN(const FileStamp stamp, FileStamp::of(path));
  OpenContext context = context_;
  if (!chain_.layers.empty()) {
    context.options.read_only = true;
    context.options.child = steps_.paths()[chain_.layers.size() - 1];
  }
  VBDKIT_ASSIGN(auto layer, open_layer(path, format, spec_, context));
  chain_.layers.push_back(std::move(layer));
  chain_.stamps.push_back(stamp);
  return {};
}

}  // namespace

Result<std::unique_ptr<Layer>> open_layer(const std::string& path, const std::string& format,
                                          const NodeSpec& like, const OpenContext& context) {
  const LayerFormat* const known = find_layer_format(format);
  if (known == nullptr)
    return Error(ErrorKind::kUnsupported, "format '" + format + "' is not known");
  NodeSpec file{"raw", path, {}};
  for (const char* key : {"align", "direct", "discard", "locking"})
    if (const auto it = like.options.find(key); it != like.options.end()) file.options.insert(*it);
  VBDKIT_ASSIGN(NodePtr node, find_driver("raw")->open(file, nullptr, context));
  const LayerContext layer{context.reactor, context.log, context.options.read_only,
                           context.options.readers};
  return known->open({path, std::move(node)}, layer);
}

Result<Chain> open_layers(const NodeSpec& spec, const ChainPolicy& policy,
                          const OpenContext& context) {
  ChainPolicy effective = policy;
  VBDKIT_ASSIGN(effective.raw_parent, OptionReader(spec).flag("raw-parent", policy.raw_parent));
  return ChainOpener(spec, effective, context).open();
}

Result<NodePtr> open_chain(const NodeSpec& spec, const ChainPolicy& policy,
                           const OpenContext& context) {
  ChainOptions options;
  VBDKIT_ASSIGN(const uint64_t memory, OptionReader(spec).size("map-memory", options.map_memory));
  options.map_memory = memory;
  VBDKIT_ASSIGN(Chain chain, open_layers(spec, policy, context));
  options.driver = spec.driver;
  options.spec = GraphSpec{{spec}}.to_string();
  options.read_only = context.options.read_only;
  options.image = spec;
  VBDKIT_ASSIGN(options.raw_parent, OptionReader(spec).flag("raw-parent", policy.raw_parent));
  return NodePtr(std::make_unique<ChainNode>(std::move(chain), std::move(options)));
}

}  // namespace vbdkit::drivers
