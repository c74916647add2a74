// SPDX-License-Identifier: LGPL-2.1-or-later
//
// OfflineClaims: the claims (backend/image_claims.h) of a command that works on image files itself,
// in one go and without a reactor of its own: while it exists, no other host opens the images in a
// way that is in conflict with their use. Locks say the same to this host's processes, and are
// taken beside it. Blocks; any one thread.
#pragma once

#include <memory>
#include <vector>

#include "backend/image_claims.h"
#include "base/log.h"
#include "base/result.h"

namespace vbdkit::storage {

// The claims of a command on whose reactor the images' nodes live: nothing where this host shares
// no registry.
Result<std::unique_ptr<ImageClaims>> claims_of_command(io::GatedReactor& reactor,
                                                       const Logger& log);

class OfflineClaims {
 public:
  // Costs nothing where this host shares no registry, or the images are on no share.
  static Result<OfflineClaims> take(const std::vector<ImageClaims::Use>& uses, const Logger& log);
  OfflineClaims(OfflineClaims&&) noexcept;
  OfflineClaims& operator=(OfflineClaims&&) noexcept;
  ~OfflineClaims();

  // Before a step that cannot be undone: the images are still ours.
  Result<void> may_write() const;

 private:
  struct Holder;
  explicit OfflineClaims(std::unique_ptr<Holder> holder);
  std::unique_ptr<Holder> holder_;
};

}  // namespace vbdkit::storage
