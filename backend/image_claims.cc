// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/image_claims.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "backend/control/qmp_client.h"
#include "backend/control/unix_socket.h"

namespace vbdkit {

namespace {

using control::Json;
using control::JsonWriter;

// etcd may have to ask all its endpoints.
constexpr std::chrono::seconds kPatience{30};
// While nothing can be done but to look whether the lease is there again.
constexpr std::chrono::milliseconds kLookInterval{250};
constexpr std::chrono::seconds kSettleInterval{1};

const char* name_of(ImageClaims::Mode mode) {
  switch (mode) {
    case ImageClaims::Mode::kRead:
      return "read";
    case ImageClaims::Mode::kWrite:
      return "write";
    case ImageClaims::Mode::kSharedRead:
      return "shared-read";
    case ImageClaims::Mode::kSharedWrite:
      return "shared-write";
    case ImageClaims::Mode::kMerge:
      return "merge";
  }
  return "";
}

// Whether whoever has the one may do the other.
bool includes(ImageClaims::Mode has, ImageClaims::Mode wanted) {
  using enum ImageClaims::Mode;
  if (has == wanted || has == kWrite) return true;
  return wanted == kSharedRead || (has == kMerge && wanted == kRead);
}

bool writes(ImageClaims::Mode mode) {
  return mode == ImageClaims::Mode::kWrite || mode == ImageClaims::Mode::kSharedWrite ||
         mode == ImageClaims::Mode::kMerge;
}

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == path.npos ? "." : path.substr(0, slash + 1);
}

Error unreachable(const Error& error, const std::string& path) {
  return Error(
      error.kind(),
      path + " is on shared storage, but vbdkit-registryd does not answer: " + error.message(),
      error.sys_errno());
}

}  // namespace

ImageClaims::Mode ImageClaims::mode_of(bool read_only, bool shared) {
  if (shared) return read_only ? Mode::kSharedRead : Mode::kSharedWrite;
  return read_only ? Mode::kRead : Mode::kWrite;
}

Result<std::unique_ptr<ImageClaims>> ImageClaims::create(io::GatedReactor& reactor,
                                                         const Logger& log,
                                                         const std::string& runtime_dir,
                                                         std::string holder) {
  VBDKIT_ASSIGN(auto config, RegistryConfig::load(registry_config_path()));
  if (!config || config->shares.empty()) return std::unique_ptr<ImageClaims>();
  return std::unique_ptr<ImageClaims>(
      new ImageClaims(reactor, log, std::move(*config), runtime_dir, std::move(holder)));
}

ImageClaims::ImageClaims(io::GatedReactor& reactor, const Logger& log, RegistryConfig config,
                         std::string runtime_dir, std::string holder)
    : reactor_(reactor),
      log_(log),
      config_(std::move(config)),
      socket_(runtime_dir + "/registry.sock"),
      runtime_dir_(std::move(runtime_dir)),
      holder_(std::move(holder)),
      timer_(reactor.timer([this] { look(); })),
      settle_timer_(reactor.timer([this] { retry_settling(); })),
      self_(std::make_shared<ImageClaims*>(this)) {}

ImageClaims::~ImageClaims() {
  *self_ = nullptr;
  reactor_.set_gate(nullptr);
  if (flusher_.joinable()) flusher_.join();
  if (held_.empty() || taken_) return;
  // Whoever waits for our end may start another one elsewhere at once. Where nobody answers,
  // registryd sees that this process has gone.
  auto client = control::QmpClient::connect(socket_);
  if (!client) return;
  JsonWriter w;
  w.begin_object().field("holder", holder_).key("images").begin_array();
  for (const auto& [image, held] : held_) w.string(image);
  w.end_array().end_object();
  const auto answer = client->execute("registry-release", w.take(), kPatience);
  if (!answer) log_.warning("registry: %s", answer.error().message().c_str());
}

Result<ImageClaims::Wanted> ImageClaims::shared_among(const std::vector<Use>& uses) const {
  Wanted wanted;
  for (const Use& use : uses) {
    auto image = config_.image_at(use.path);
    if (!image && image.error().kind() == ErrorKind::kNotFound) {
      VBDKIT_ASSIGN(const auto directory, config_.image_at(directory_of(use.path)));
      if (!directory) continue;
    }
    if (!image) return std::move(image).error();
    if (!*image) continue;
    const auto [at, fresh] = wanted.try_emplace(**image, Held{use.mode, use.path, 0, {}});
    if (!fresh && includes(use.mode, at->second.mode)) at->second.mode = use.mode;
    if (use.through.empty()) continue;
    VBDKIT_ASSIGN(auto through, config_.image_at(use.through));
    if (through) at->second.through = std::move(*through);
  }
  return wanted;
}

bool ImageClaims::covers(const std::string& image, Mode mode) const {
  const auto found = held_.find(image);
  return found != held_.end() && includes(found->second.mode, mode);
}

bool ImageClaims::covers(const std::vector<Use>& uses) const {
  const auto wanted = shared_among(uses);
  return wanted && lacking(*wanted).empty();
}

ImageClaims::Wanted ImageClaims::lacking(const Wanted& wanted) const {
  Wanted lacks;
  for (const auto& [image, use] : wanted)
    if (!covers(image, use.mode)) lacks.emplace(image, use);
  return lacks;
}

std::string ImageClaims::claim_arguments(const Wanted& wanted) const {
  JsonWriter w;
  w.begin_object().field("holder", holder_).key("images").begin_array();
  for (const auto& [image, use] : wanted) {
    w.begin_object().field("image", image).field("mode", name_of(use.mode));
    w.field("path", use.path);
    if (!use.through.empty()) w.field("through", use.through);
    w.end_object();
  }
  w.end_array().end_object();
  return w.take();
}

Result<void> ImageClaims::open_view() {
  if (view_) return {};
  VBDKIT_ASSIGN(LeaseView view, LeaseView::open(runtime_dir_));
  view_.emplace(std::move(view));
  return {};
}

// `answer`: of registry-claim.
Result<void> ImageClaims::claimed(const Wanted& wanted, const Json& answer) {
  VBDKIT_TRY(open_view());
  const uint64_t epoch = answer.member("epoch").number().value_or(0);
  const Json revisions = answer.member("revisions");
  if (epoch == 0 || revisions.size() != wanted.size())
    return Error(ErrorKind::kProtocol, "registry: an answer that makes no sense");
  if (held_.empty()) epoch_ = epoch;
  // What we had before is to be looked at again.
  if (epoch_ != epoch) epoch_ = 0;
  size_t at = 0;
  for (const auto& [image, use] : wanted)
    held_[image] = {use.mode, use.path, revisions.at(at++).number().value_or(0), use.through};
  reactor_.set_gate(this);
  look();
  return {};
}

Result<void> ImageClaims::acquire_now(const std::vector<Use>& uses) {
  VBDKIT_ASSIGN(const Wanted wanted, shared_among(uses));
  return claim_now(lacking(wanted));
}

Result<void> ImageClaims::change_now(const std::vector<Use>& uses) {
  VBDKIT_ASSIGN(const Wanted wanted, shared_among(uses));
  return claim_now(wanted);
}

Result<void> ImageClaims::claim_now(const Wanted& wanted) {
  if (wanted.empty()) return {};
  const std::string& path = wanted.begin()->second.path;
  auto client = control::QmpClient::connect(socket_);
  if (!client) return unreachable(client.error(), path);
  const auto answer = client->execute("registry-claim", claim_arguments(wanted), kPatience);
  if (!answer) return Error(answer.error()).context("registry");
  VBDKIT_TRY(claimed(wanted, *answer));
  // What opening does is not done by the reactor.
  return may_write();
}

void ImageClaims::acquire(const std::vector<Use>& uses, Done done) {
  auto wanted = shared_among(uses);
  const Wanted lacks = wanted ? lacking(*wanted) : Wanted();
  if (!wanted || lacks.empty()) {
    Result<void> result = wanted ? Result<void>() : Result<void>(wanted.error());
    reactor_.post([done = std::move(done), result = std::move(result)] { done(result); });
    return;
  }
  ask({"registry-claim", claim_arguments(lacks),
       [this, lacks, done = std::move(done)](Result<Json> answer) {
         if (!answer) return done(std::move(answer).error().context("registry"));
         done(claimed(lacks, *answer));
       }});
}

void ImageClaims::settle(const std::vector<Use>& uses) {
  if (taken_) return;
  auto wanted = shared_among(uses);
  if (!wanted) {
    log_.warning("registry: %s", wanted.error().message().c_str());
    return;
  }
  settling_ = std::move(*wanted);
  retry_settling();
}

void ImageClaims::when_settled(std::function<void()> then) {
  if (steps_.empty())
    reactor_.post(std::move(then));
  else
    when_settled_.push_back(std::move(then));
}

void ImageClaims::retry_settling() {
  if (!settling_ || taken_) return;
  const Wanted wanted = *std::exchange(settling_, std::nullopt);
  std::vector<std::string> rest;
  for (const auto& [image, held] : held_)
    if (!wanted.contains(image)) rest.push_back(image);
  // Also what is held for more than is done with it now.
  Wanted changed;
  for (const auto& [image, use] : wanted)
    if (const auto found = held_.find(image);
        found == held_.end() || found->second.mode != use.mode)
      changed.emplace(image, use);
  if (!rest.empty()) release(rest);
  if (changed.empty()) return;
  ask({"registry-claim", claim_arguments(changed), [this, wanted, changed](Result<Json> answer) {
         if (answer) {
           if (auto known = claimed(changed, *answer); !known)
             log_.warning("%s", known.error().message().c_str());
           return;
         }
         const bool ours = std::ranges::all_of(
             changed, [&](const auto& entry) { return covers(entry.first, entry.second.mode); });
         if (!ours && answer.error().message().find(" is in use on host ") != std::string::npos)
           return lose(answer.error().message());
         if (!settling_) settling_ = wanted;
         settle_timer_->arm(io::Timer::Clock::now() + kSettleInterval);
       }});
}

void ImageClaims::release(const std::vector<std::string>& images) {
  JsonWriter w;
  w.begin_object().field("holder", holder_).key("images").begin_array();
  for (const std::string& image : images) {
    w.string(image);
    held_.erase(image);
  }
  w.end_array().end_object();
  if (held_.empty()) reactor_.set_gate(nullptr);
  // Where nobody answers it remains ours until this process has ended.
  ask({"registry-release", w.take(), [](const Result<Json>&) {}});
}

// ---- asking registryd, one thing after the other, over a connection of its own ----

void ImageClaims::ask(Step step) {
  steps_.push_back(std::move(step));
  if (steps_.size() == 1) next_step();
}

void ImageClaims::next_step() {
  reactor_.post([self = self_] {
    if (*self == nullptr) return;
    ImageClaims& claims = **self;
    auto socket = control::connect_unix(claims.socket_);
    if (!socket) return claims.step_done(std::move(socket).error());
    auto link = control::QmpLink::create(claims.reactor_, std::move(*socket),
                                         {.ready = {}, .event = {}, .closed = [] {}});
    if (!link) return claims.step_done(std::move(link).error());
    claims.link_ = std::move(*link);
    const Step& step = claims.steps_.front();
    claims.link_->execute(step.command, step.arguments, [self](Result<Json> answer) {
      if (*self != nullptr) (*self)->step_done(std::move(answer));
    });
  });
}

void ImageClaims::step_done(Result<Json> answer) {
  // The link may be what calls.
  reactor_.post([link = std::shared_ptr<control::QmpLink>(std::move(link_))] {});
  const Step step = std::move(steps_.front());
  steps_.pop_front();
  if (!steps_.empty()) next_step();
  step.then(std::move(answer));
  if (steps_.empty())
    for (auto& then : std::exchange(when_settled_, {})) reactor_.post(std::move(then));
}

// ---- the lease ----

BootClock::time_point ImageClaims::hold_at() const {
  return view_ && epoch_ != 0 ? view_->hold_at(epoch_) : BootClock::time_point();
}

io::FileGate::State ImageClaims::state() {
  if (taken_) return State::kFailed;
  if (held_.empty() || (!holding_ && BootClock::now() < hold_at())) return State::kOpen;
  return State::kClosed;
}

void ImageClaims::holding() {
  if (!holding_) look();
}

Result<void> ImageClaims::may_write() const {
  if (taken_) return Error(ErrorKind::kIo, "registry: another host has taken an image", EIO);
  if (held_.empty() || (!holding_ && BootClock::now() < hold_at())) return {};
  return Error(ErrorKind::kTimedOut, "registry: this host's lease is not certain any more");
}

void ImageClaims::look() {
  if (held_.empty() || taken_) return;
  const auto now = BootClock::now();
  const auto until = hold_at();
  if (now < until) {
    timer_->arm(io::Timer::Clock::now() +
                std::chrono::ceil<io::Timer::Clock::duration>(until - now));
    if (!std::exchange(holding_, false)) return;
    log_.notice("registry: the lease is certain again, and the images are ours: going on");
    if (events_.going_on) events_.going_on();
    reactor_.look_again();
    return;
  }
  if (!holding_) begin_holding();
  timer_->arm(io::Timer::Clock::now() + kLookInterval);
  const uint64_t epoch = view_ ? view_->epoch() : 0;
  if (epoch != 0 && epoch != epoch_ && now < view_->hold_at(epoch)) resume();
}

void ImageClaims::begin_holding() {
  holding_ = true;
  log_.warning(
      "registry: this host's lease is not renewed; from now on nothing is read or written "
      "(with the kernel still: %zu)",
      reactor_.in_flight());
  if (events_.holding) events_.holding();
  flush_files();
}

// What the page cache has of our writes must be on the storage before others may have the image.
void ImageClaims::flush_files() {
  std::vector<std::string> paths;
  for (const auto& [image, held] : held_)
    if (writes(held.mode)) paths.push_back(held.path);
  if (flusher_.joinable()) flusher_.join();
  flusher_ = std::thread([paths = std::move(paths), &log = log_] {
    for (const std::string& path : paths) {
      const auto fd = Fd::open(path, O_RDONLY);
      if (!fd || ::fdatasync(fd->get()) < 0) log.warning("registry: flush %s failed", path.c_str());
    }
  });
}

// The host's key had a break: others may have taken what was ours.
void ImageClaims::resume() {
  if (std::exchange(resuming_, true)) return;
  JsonWriter w;
  w.begin_object().field("holder", holder_).key("images").begin_array();
  for (const auto& [image, held] : held_)
    w.begin_object().field("image", image).field("revision", held.revision).end_object();
  w.end_array().end_object();
  ask({"registry-resume", w.take(), [this](Result<Json> answer) { resumed(std::move(answer)); }});
}

void ImageClaims::resumed(Result<Json> answer) {
  resuming_ = false;
  if (!answer) return;  // with the next look
  const Json missing = answer->member("missing");
  std::string paths;
  for (size_t i = 0; i < missing.size(); ++i) {
    const auto found = held_.find(missing.at(i).string().value_or(""));
    if (found != held_.end()) paths += (paths.empty() ? "" : ", ") + found->second.path;
  }
  if (!paths.empty()) return lose("another host has taken " + paths);
  epoch_ = answer->member("epoch").number().value_or(0);
  look();
}

void ImageClaims::lose(const std::string& why) {
  if (std::exchange(taken_, true)) return;
  timer_->cancel();
  log_.error("registry: %s; from now on every request fails", why.c_str());
  if (events_.taken) events_.taken(why);
  reactor_.look_again();
}

}  // namespace vbdkit
