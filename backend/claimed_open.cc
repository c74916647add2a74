// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/claimed_open.h"

#include "drivers/image_format.h"
#include "drivers/stored_image.h"

namespace vbdkit {

using Use = ImageClaims::Use;

namespace {

constexpr unsigned kAttempts = 3;

// What it will open, as far as that can be known before.
std::vector<Use> uses_of(const drivers::GraphSpec& spec, const drivers::OpenOptions& options) {
  const drivers::NodeSpec& leaf = spec.leaf();
  std::vector<Use> uses;
  if (leaf.path.empty() || leaf.path.find("://") != std::string::npos) return uses;
  uses.push_back({leaf.path, ImageClaims::mode_of(options.read_only, options.shared)});
  const auto* const format = drivers::find_image_format(leaf.driver);
  if (format == nullptr || format->plan_parent == nullptr) return uses;
  const auto paths = drivers::inspect_chain(leaf.path, leaf.driver).paths;
  for (size_t i = 1; i < paths.size(); ++i)
    uses.push_back({paths[i], ImageClaims::mode_of(true, options.shared)});
  return uses;
}

}  // namespace

std::vector<Use> uses_of(drivers::Node& top, bool shared) {
  std::vector<drivers::StoredImage> images;
  for (drivers::Node* node = &top; node != nullptr; node = node->next_node())
    node->list_images(images);
  std::vector<Use> uses;
  for (const drivers::StoredImage& image : images)
    if (image.device != 0)
      uses.push_back({image.path, ImageClaims::mode_of(image.read_only, shared)});
  return uses;
}

// A chain may change between two looks at it.
Result<drivers::NodePtr> open_claimed(const drivers::GraphSpec& spec,
                                      const drivers::OpenContext& context, ImageClaims* claims) {
  if (claims == nullptr) return drivers::open_graph(spec, context);
  std::vector<Use> wanted = uses_of(spec, context.options);
  for (unsigned i = 0; i < kAttempts; ++i) {
    VBDKIT_TRY(claims->acquire_now(wanted));
    VBDKIT_ASSIGN(drivers::NodePtr top, drivers::open_graph(spec, context));
    wanted = uses_of(*top, context.options.shared);
    if (claims->covers(wanted)) return top;
  }
  return Error(ErrorKind::kBusy, spec.to_string() + ": its chain changes while it is opened",
               EBUSY);
}

}  // namespace vbdkit
