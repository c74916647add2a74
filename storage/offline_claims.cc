// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/offline_claims.h"

#include <unistd.h>

#include <string>
#include <utility>

#include "backend/registry_config.h"
#include "io/gated_reactor.h"
#include "storage/registry.h"

namespace vbdkit::storage {

Result<std::unique_ptr<ImageClaims>> claims_of_command(io::GatedReactor& reactor,
                                                       const Logger& log) {
  return ImageClaims::create(reactor, log, default_runtime_dir(),
                             "vbdkit-" + std::to_string(::getpid()));
}

struct OfflineClaims::Holder {
  explicit Holder(std::unique_ptr<io::Reactor> r) : reactor(std::move(r)), gated(*reactor) {}

  std::unique_ptr<io::Reactor> reactor;
  io::GatedReactor gated;
  std::unique_ptr<ImageClaims> claims;
};

Result<OfflineClaims> OfflineClaims::take(const std::vector<ImageClaims::Use>& uses,
                                          const Logger& log) {
  VBDKIT_ASSIGN(const auto config, RegistryConfig::load(registry_config_path()));
  if (!config) return OfflineClaims(nullptr);
  io::Reactor::Options options;
  options.engine = io::EngineKind::kSync;
  VBDKIT_ASSIGN(auto reactor, io::Reactor::create(options, log));
  auto holder = std::make_unique<Holder>(std::move(reactor));
  VBDKIT_ASSIGN(holder->claims, claims_of_command(holder->gated, log));
  if (holder->claims) VBDKIT_TRY(holder->claims->acquire_now(uses));
  return OfflineClaims(std::move(holder));
}

OfflineClaims::OfflineClaims(std::unique_ptr<Holder> holder) : holder_(std::move(holder)) {}
OfflineClaims::OfflineClaims(OfflineClaims&&) noexcept = default;
OfflineClaims& OfflineClaims::operator=(OfflineClaims&&) noexcept = default;
OfflineClaims::~OfflineClaims() = default;

Result<void> OfflineClaims::may_write() const {
  return holder_ && holder_->claims ? holder_->claims->may_write() : Result<void>();
}

}  // namespace vbdkit::storage
