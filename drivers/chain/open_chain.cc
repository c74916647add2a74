// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/chain/open_chain.h"

#include <sys/stat.h>

#include <algorithm>

#include "drivers/chain/image_file.h"
#include "drivers/drivers.h"
#include "drivers/options.h"

namespace vbdkit::drivers {
namespace {

class ChainOpener {
 public:
  ChainOpener(const NodeSpec& spec, ChainPolicy policy, const OpenContext& context)
      : spec_(spec), policy_(policy), context_(context) {}

  Result<Chain> open();

 private:
  Result<void> add(const std::string& path, const std::string& format);
  Result<void> add_parent(const ParentReference& reference);
  Result<void> check_parent(const ParentReference& reference);
  Result<std::unique_ptr<Layer>> open_layer(const std::string& path, const LayerFormat& format);
  Error failed(Error error) const;

  const NodeSpec& spec_;
  const ChainPolicy policy_;
  const OpenContext& context_;
  Chain chain_;
  std::vector<FileIdentity> files_;
  int64_t modified_ = 0;  // of the last layer's file, seconds since the Epoch
};

// "vhd: open /srv/leaf.vhd, its parent /srv/base.vhd: reason".
Error ChainOpener::failed(Error error) const {
  std::string steps;
  for (const std::string& path : chain_.paths)
    steps += (steps.empty() ? ": open " : ", its parent ") + path;
  return std::move(error).context(spec_.driver + steps);
}

Result<Chain> ChainOpener::open() {
  auto added = add(spec_.path, spec_.driver);
  while (added) {
    const ParentReference* reference = chain_.layers.back()->parent();
    if (reference == nullptr) return std::move(chain_);
    added = add_parent(*reference);
  }
  return failed(std::move(added).error());
}

Result<void> ChainOpener::add_parent(const ParentReference& reference) {
  if (chain_.layers.size() == kMaxChainDepth)
    return Error(ErrorKind::kUnsupported,
                 "the chain is longer than " + std::to_string(kMaxChainDepth) + " images");
  if (reference.path.empty())
    return Error(ErrorKind::kCorrupt, "it has a parent but does not say where");
  if (reference.format.empty())
    return Error(ErrorKind::kUnsupported,
                 "it does not say which format its parent " + reference.path +
                     " has, and formats are not guessed (qemu-img rebase -u -F records it)");
  if (reference.format == "raw" && !policy_.raw_parent)
    return Error(ErrorKind::kPermission, "its parent " + reference.path +
                                             " is a raw file, which raw-parent=on would allow");
  struct stat st {};
  if (stat(reference.path.c_str(), &st) != 0 && errno == ENOENT) {
    std::string tried;
    for (const std::string& path : reference.tried) tried += (tried.empty() ? "" : ", ") + path;
    return Error(ErrorKind::kNotFound, "its parent is missing; looked for " + tried, ENOENT);
  }
  const ParentReference wanted = reference;
  VBDKIT_TRY(add(wanted.path, wanted.format));
  return check_parent(wanted);
}

Result<void> ChainOpener::check_parent(const ParentReference& reference) {
  const std::string& found = chain_.layers.back()->info().uuid;
  if (!reference.uuid.empty() && reference.uuid != found)
    return Error(ErrorKind::kCorrupt, "it is not the parent its child was made on: UUID " +
                                          (found.empty() ? "none" : found) + ", expected " +
                                          reference.uuid);
  // Copying an image changes its time, so this says little by itself.
  if (reference.modified != 0 && reference.modified != modified_)
    context_.log.info("%s: %s: its parent %s has another modification time than when it was made",
                      spec_.driver.c_str(), chain_.paths[chain_.paths.size() - 2].c_str(),
                      chain_.paths.back().c_str());
  return {};
}

Result<void> ChainOpener::add(const std::string& path, const std::string& format) {
  chain_.paths.push_back(path);
  const LayerFormat* const known = find_layer_format(format);
  if (known == nullptr)
    return Error(ErrorKind::kUnsupported, "format '" + format + "' is not known");
  struct stat st {};
  if (stat(path.c_str(), &st) != 0) return Error::from_errno(errno, "open " + path);
  const FileIdentity identity{st.st_dev, st.st_ino};
  if (std::find(files_.begin(), files_.end(), identity) != files_.end())
    return Error(ErrorKind::kCorrupt, "the chain is a loop: this file is in it already");
  files_.push_back(identity);
  modified_ = st.st_mtim.tv_sec;
  VBDKIT_ASSIGN(auto layer, open_layer(path, *known));
  chain_.layers.push_back(std::move(layer));
  return {};
}

Result<std::unique_ptr<Layer>> ChainOpener::open_layer(const std::string& path,
                                                       const LayerFormat& format) {
  OpenContext context = context_;
  context.options.read_only = context_.options.read_only || !chain_.layers.empty();
  NodeSpec file{"raw", path, {}};
  for (const char* key : {"align", "direct", "discard", "locking"})
    if (const auto it = spec_.options.find(key); it != spec_.options.end())
      file.options.insert(*it);
  VBDKIT_ASSIGN(NodePtr node, find_driver("raw")->open(file, nullptr, context));
  const LayerContext layer{context.reactor, context.log, context.options.read_only};
  return format.open({path, std::move(node)}, layer);
}

}  // namespace

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
  return NodePtr(std::make_unique<ChainNode>(std::move(chain), std::move(options)));
}

}  // namespace vbdkit::drivers
