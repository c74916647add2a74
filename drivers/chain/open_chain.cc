// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/chain/open_chain.h"

#include "drivers/drivers.h"
#include "drivers/group_snapshot.h"
#include "drivers/options.h"

namespace vbdkit::drivers {

ChainOpening::ChainOpening(NodeSpec spec, ChainPolicy policy, const OpenContext& context)
    : spec_(std::move(spec)), policy_(policy), context_(context), steps_(spec_.driver) {}

Result<bool> ChainOpening::step() {
  auto more = add_next();
  if (more) return more;
  // A leaf that is written is nobody else's to change.
  const auto changed = steps_.go_back(context_.options.read_only ? 0 : 1, more.error());
  if (!changed) return steps_.failed(std::move(more).error());
  chain_.layers.resize(*changed);
  return true;
}

Result<bool> ChainOpening::add_next() {
  if (chain_.layers.empty()) {
    if (!context_.options.read_only && !context_.options.shared)
      VBDKIT_TRY(end_interrupted_group(spec_.path));
    VBDKIT_TRY(add(spec_.path, spec_.driver));
    return true;
  }
  const ParentReference* const reference = chain_.layers.back()->parent();
  if (reference == nullptr) return false;
  VBDKIT_TRY(add_parent(*reference));
  return true;
}

Result<Chain> ChainOpening::take_layers() {
  chain_.paths = steps_.paths();
  chain_.stamps = steps_.stamps();
  return std::move(chain_);
}

Result<NodePtr> ChainOpening::take() {
  ChainOptions options;
  VBDKIT_ASSIGN(const uint64_t memory, OptionReader(spec_).size("map-memory", options.map_memory));
  options.map_memory = memory;
  options.driver = spec_.driver;
  options.spec = GraphSpec{{spec_}}.to_string();
  options.read_only = context_.options.read_only;
  options.image = spec_;
  options.raw_parent = policy_.raw_parent;
  VBDKIT_ASSIGN(Chain chain, take_layers());
  return NodePtr(std::make_unique<ChainNode>(std::move(chain), std::move(options)));
}

Result<void> ChainOpening::add_parent(const ParentReference& reference) {
  if (reference.format == "raw" && !policy_.raw_parent)
    return Error(ErrorKind::kPermission, "its parent " + reference.path +
                                             " is a raw file, which raw-parent=on would allow");
  VBDKIT_TRY(steps_.check(reference));
  const ParentReference wanted = reference;
  VBDKIT_TRY(add(wanted.path, wanted.format));
  VBDKIT_TRY(steps_.check_identity(wanted, chain_.layers.back()->info().uuid));
  // Copying an image changes its time, so this says little by itself.
  if (wanted.modified != 0 && wanted.modified != steps_.stamps().back().modified / 1'000'000'000)
    context_.log.info("%s: %s: its parent %s has another modification time than when it was made",
                      spec_.driver.c_str(), steps_.paths()[steps_.paths().size() - 2].c_str(),
                      steps_.paths().back().c_str());
  return {};
}

Result<void> ChainOpening::add(const std::string& path, const std::string& format) {
  VBDKIT_TRY(steps_.add(path));
  OpenContext context = context_;
  if (!chain_.layers.empty()) {
    context.options.read_only = true;
    context.options.child = steps_.paths()[chain_.layers.size() - 1];
  }
  VBDKIT_ASSIGN(auto layer, open_layer(path, format, spec_, context));
  chain_.layers.push_back(std::move(layer));
  return {};
}

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

namespace {

Result<ChainOpening> opened(const NodeSpec& spec, const ChainPolicy& policy,
                            const OpenContext& context) {
  ChainPolicy effective = policy;
  VBDKIT_ASSIGN(effective.raw_parent, OptionReader(spec).flag("raw-parent", policy.raw_parent));
  ChainOpening opening(spec, effective, context);
  for (;;) {
    VBDKIT_ASSIGN(const bool more, opening.step());
    if (!more) return opening;
  }
}

}  // namespace

Result<Chain> open_layers(const NodeSpec& spec, const ChainPolicy& policy,
                          const OpenContext& context) {
  VBDKIT_ASSIGN(ChainOpening opening, opened(spec, policy, context));
  return opening.take_layers();
}

Result<NodePtr> open_chain(const NodeSpec& spec, const ChainPolicy& policy,
                           const OpenContext& context) {
  VBDKIT_ASSIGN(ChainOpening opening, opened(spec, policy, context));
  return opening.take();
}

}  // namespace vbdkit::drivers
