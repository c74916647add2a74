// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/blkif/vbd.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <utility>

#include "backend/blkif/negotiation.h"

namespace vbdkit::blkif {
namespace {

struct Identity {
  std::string backend;
  std::string frontend;
  xen::DomId domid = 0;
  std::string device_id;
  bool read_only = false;
  bool cdrom = false;
  bool removable = false;
  bool discard = true;
};

XenbusState to_state(const std::optional<std::string>& text) {
  unsigned value = 0;
  if (text) std::from_chars(text->data(), text->data() + text->size(), value);
  return value <= XenbusStateReconfigured ? static_cast<XenbusState>(value) : XenbusStateUnknown;
}

// All from our own directory, which the toolstack wrote and the guest can only read (XSA-175).
Result<Identity> read_identity(const xen::StoreView& store, const std::string& backend) {
  Identity id;
  id.backend = backend;
  id.device_id = backend.substr(backend.rfind('/') + 1);
  VBDKIT_ASSIGN(id.frontend, store.read(backend + "/frontend"));
  VBDKIT_ASSIGN(std::string domid, store.read(backend + "/frontend-id"));
  auto [stop, error] = std::from_chars(domid.data(), domid.data() + domid.size(), id.domid);
  if (error != std::errc() || stop != domid.data() + domid.size())
    return Error(ErrorKind::kProtocol, backend + "/frontend-id: not a domain id: " + domid);
  const auto is = [&](const char* node, std::string_view value, bool absent) -> Result<bool> {
    VBDKIT_ASSIGN(auto text, store.find(backend + "/" + node));
    return text ? *text == value : absent;
  };
  VBDKIT_ASSIGN(bool writable, is("mode", "w", false));
  id.read_only = !writable;
  VBDKIT_ASSIGN(id.cdrom, is("device-type", "cdrom", false));
  VBDKIT_ASSIGN(id.removable, is("removable", "1", false));
  VBDKIT_ASSIGN(id.discard, is("discard-enable", "1", true));
  return id;
}

class VbdImpl final : public Vbd {
 public:
  VbdImpl(VbdContext context, Identity id, VbdCallbacks callbacks)
      : context_(std::move(context)), id_(std::move(id)), callbacks_(std::move(callbacks)) {}
  ~VbdImpl() override = default;

  Result<void> start() override;
  void close() override;
  void shutdown(std::function<void()> done) override;
  void pause(std::function<void()> drained) override;
  void resume() override;
  void resized() override;

  const std::string& backend_path() const override { return id_.backend; }
  xen::DomId domid() const override { return id_.domid; }
  const std::string& device_id() const override { return id_.device_id; }
  XenbusState state() const override { return state_; }
  bool connected() const override { return !queues_.empty(); }
  Stats stats() const override;

 private:
  io::Reactor& reactor() { return context_.hosts.front().reactor; }
  const QueueHost& host(size_t queue) const {
    return context_.hosts[queue % context_.hosts.size()];
  }
  std::string node(const char* name) const { return id_.backend + "/" + name; }

  void evaluate();
  void hurry();
  void follow(XenbusState frontend, bool online);
  void offer_again();
  void connect();
  Result<void> open_queues(const FrontendOffer& offer);
  void tear_down(std::function<void()> then);
  void queue_is_quiet(size_t index);
  void close_down();
  void finish();

  DiskProperties disk() const;
  Result<void> publish(XenbusState state);
  bool write_connected();
  bool write_state(XenbusState state,
                   const std::function<Result<void>(const xen::StoreView&)>& with = {});
  void report(const Error& error);
  void run_on(const QueueHost& host, const std::function<void()>& task);
  void run_home(const QueueHost& from, std::function<void()> task);
  Limits our_limits() const;
  PageAccess access_for(const FrontendOffer& offer) const;

  VbdContext context_;
  const Identity id_;
  VbdCallbacks callbacks_;
  RateLimit limit_;
  Limits limits_;  // what the frontend was offered
  std::unique_ptr<XentopPage> xentop_;

  XenbusState state_ = XenbusStateUnknown;  // ours, as last seen or written
  FrontendOffer offer_;                     // of the rings below
  std::vector<std::unique_ptr<Queue>> queues_;
  Stats past_;  // of queues that are no more

  bool tearing_down_ = false;
  size_t queues_left_ = 0;
  std::vector<std::function<void()>> after_teardown_;
  bool evaluate_again_ = false;  // something changed while tearing down
  bool let_go_ = false;          // shutdown() or gone: xenstore is not looked at any more
  unsigned paused_ = 0;
  PropertyNodes published_;  // what xenstore says of the disk

  std::unique_ptr<xen::XenStore::Watch> frontend_watch_;
  std::unique_ptr<xen::XenStore::Watch> state_watch_;
  std::unique_ptr<xen::XenStore::Watch> online_watch_;
};

Result<void> VbdImpl::start() {
  xen::XenStore& store = context_.store;
  VBDKIT_ASSIGN(auto state, store.find(node("state")));
  state_ = to_state(state);
  limits_ = our_limits();
  switch (state_) {
    case XenbusStateInitialising:
      VBDKIT_TRY(publish(XenbusStateInitWait));
      break;
    case XenbusStateInitWait: {
      // Somebody has answered in our place, and the frontend may have acted on what it read.
      VBDKIT_ASSIGN(limits_, read_limits(store, id_.backend, limits_));
      VBDKIT_TRY(publish(XenbusStateInitWait));
      break;
    }
    case XenbusStateClosing:
    case XenbusStateClosed:
      break;
    default:
      return Error(ErrorKind::kBusy, id_.backend + ": is in state " + state.value_or("(none)") +
                                         ", so another backend has it");
  }
  if (!context_.xentop_dir.empty()) {
    auto page = XentopPage::create(context_.xentop_dir, id_.domid, id_.device_id);
    if (page) {
      xentop_ = std::move(page).value();
      VBDKIT_TRY(store.write(node("kthread-pid"), std::to_string(getpid())));
    } else {
      context_.log.notice("%s: %s", id_.backend.c_str(), page.error().message().c_str());
    }
  }
  // Each fires at once, so the first look at the frontend follows by itself.
  const auto follow_node = [this](const std::string& path) {
    return context_.store.watch(path, [this, path](const std::string& changed) {
      // What a guest writes below its state is nothing to us.
      if (changed.size() <= path.size()) evaluate();
    });
  };
  VBDKIT_ASSIGN(state_watch_, follow_node(node("state")));
  VBDKIT_ASSIGN(online_watch_, follow_node(node("online")));
  VBDKIT_ASSIGN(frontend_watch_, follow_node(id_.frontend + "/state"));
  return {};
}

// Looks where everybody stands and does what is next. Called for every change, in any order and
// number; while queues are being let go, it is put off until they are.
void VbdImpl::evaluate() {
  if (let_go_) return;
  auto ours = context_.store.find(node("state"));
  auto online = context_.store.find(node("online"));
  auto theirs = context_.store.find(id_.frontend + "/state");
  if (!ours || !online || !theirs) {
    const Error& e = !ours ? ours.error() : !online ? online.error() : theirs.error();
    context_.log.limited(limit_, LogLevel::kError, "%s: %s", id_.backend.c_str(),
                         e.message().c_str());
    return;
  }
  const XenbusState frontend = to_state(*theirs);
  const bool leaving = !*ours || *online == "0" || frontend == XenbusStateUnknown;
  if (tearing_down_) {
    evaluate_again_ = true;
  } else if (!*ours) {
    tear_down([this] { finish(); });
  } else {
    state_ = to_state(*ours);
    follow(frontend, *online != "0");
  }
  if (leaving && tearing_down_) hurry();
}

// The toolstack waits for us. Not for a guest that closes: it would so get around its limits.
void VbdImpl::hurry() {
  for (size_t i = 0; i < queues_.size(); ++i) run_on(host(i), [&] { host(i).sink.hurry(); });
}

void VbdImpl::follow(XenbusState frontend, bool online) {
  switch (frontend) {
    case XenbusStateInitialising:
      if (state_ == XenbusStateClosed && online && queues_.empty())
        offer_again();
      else if (state_ == XenbusStateClosing)
        close_down();  // by the toolstack, before the frontend took any notice of us
      break;
    case XenbusStateInitialised:
    case XenbusStateConnected:
      if (state_ == XenbusStateClosed && online && queues_.empty())
        offer_again();  // it did not wait for us to do so
      if (state_ == XenbusStateInitWait || state_ == XenbusStateConnected) connect();
      break;
    case XenbusStateClosing:
      if (state_ != XenbusStateClosed && state_ != XenbusStateClosing)
        write_state(XenbusStateClosing);
      break;
    case XenbusStateClosed:
    case XenbusStateUnknown:  // its directory is gone
      if (state_ != XenbusStateClosed || !queues_.empty()) {
        close_down();
        return;
      }
      break;
    default:
      break;
  }
  if (state_ == XenbusStateClosed && !online && queues_.empty()) finish();
}

// After a close: for the next kernel of the same guest.
void VbdImpl::offer_again() {
  limits_ = our_limits();
  if (auto r = publish(XenbusStateInitWait); !r) report(r.error());
}

void VbdImpl::connect() {
  auto offer = read_offer(context_.store, id_.frontend, limits_);
  if (!queues_.empty()) {
    // It has closed and come back while we did not look, if this is not what we are connected to.
    if (offer && !(*offer == offer_)) tear_down([this] { connect(); });
    return;
  }
  if (state_ != XenbusStateInitWait && state_ != XenbusStateConnected) return;
  Result<void> opened = offer ? open_queues(*offer) : Result<void>(offer.error());
  if (!opened) {
    report(opened.error());
    write_state(XenbusStateClosing);
    return;
  }
  offer_ = std::move(offer).value();
  // The size may have changed since it was offered.
  if (!write_connected()) return;
  context_.log.info("%s: connected: %zu queues of %zu pages, %s, %s", id_.backend.c_str(),
                    offer_.rings.size(), offer_.rings.front().refs.size(),
                    offer_.layout == &kLayout64 ? "64-bit" : "32-bit",
                    offer_.persistent ? "persistent grants" : "no persistent grants");
  if (callbacks_.on_connected) callbacks_.on_connected(true);
}

Result<void> VbdImpl::open_queues(const FrontendOffer& offer) {
  QueueParams params;
  params.domid = id_.domid;
  params.layout = offer.layout;
  params.access = access_for(offer);
  params.indirect_segments = limits_.indirect_segments;
  const DiskProperties properties = disk();
  params.read_only = properties.read_only;
  params.discard = offers_discard(properties);
  std::vector<std::unique_ptr<Queue>> queues(offer.rings.size());
  Result<void> result;
  for (size_t i = 0; i < queues.size() && result; ++i) {
    params.ring_refs = offer.rings[i].refs;
    params.event_channel = offer.rings[i].event_channel;
    run_on(host(i), [&] {
      auto queue = Queue::create(
          host(i), params, context_.log, xentop_.get(), [this, i](const std::string& why) {
            run_home(host(i), [this, why] { report(Error(ErrorKind::kProtocol, why, EINVAL)); });
          });
      if (queue)
        queues[i] = std::move(queue).value();
      else
        result = queue.error();
      if (queues[i] && paused_ > 0) queues[i]->quiesce([] {});
    });
  }
  if (!result) {
    for (size_t i = 0; i < queues.size(); ++i) run_on(host(i), [&] { queues[i].reset(); });
    return result;
  }
  queues_ = std::move(queues);
  return {};
}

Limits VbdImpl::our_limits() const {
  Limits l = context_.limits;
  l.ring_page_order = std::min(l.ring_page_order, kMaxRingPageOrder);
  l.indirect_segments = std::min(l.indirect_segments, kMaxIndirectSegments);
  l.queues = std::clamp(l.queues, 1u, kMaxQueues);
  if (context_.policy == GrantPolicy::kMap || context_.policy == GrantPolicy::kCopy)
    l.persistent_grants = false;
  return l;
}

PageAccess VbdImpl::access_for(const FrontendOffer& offer) const {
  const bool persistent = offer.persistent && limits_.persistent_grants;
  switch (context_.policy) {
    case GrantPolicy::kAuto:
      return persistent ? PageAccess::kPersistent : PageAccess::kCopy;
    case GrantPolicy::kPersistent:
      return persistent ? PageAccess::kPersistent : PageAccess::kMap;
    case GrantPolicy::kMap:
      return PageAccess::kMap;
    case GrantPolicy::kCopy:
      break;
  }
  return PageAccess::kCopy;
}

// Finishes what is in flight, then unmaps everything and closes the ports; then does `then`.
void VbdImpl::tear_down(std::function<void()> then) {
  if (queues_.empty()) {
    then();
    return;
  }
  after_teardown_.push_back(std::move(then));
  if (std::exchange(tearing_down_, true)) return;
  queues_left_ = queues_.size();
  for (size_t i = 0; i < queues_.size(); ++i)
    run_on(host(i), [this, i] {
      queues_[i]->quiesce([this, i] { run_home(host(i), [this, i] { queue_is_quiet(i); }); });
    });
}

void VbdImpl::queue_is_quiet(size_t index) {
  past_ += queues_[index]->stats();
  run_on(host(index), [&] { queues_[index].reset(); });
  if (--queues_left_ > 0) return;
  queues_.clear();
  offer_ = {};
  tearing_down_ = false;
  if (callbacks_.on_connected) callbacks_.on_connected(false);
  for (auto& then : std::exchange(after_teardown_, {})) then();
  if (std::exchange(evaluate_again_, false)) evaluate();
}

// Our own watch then looks whether that was the end, or the guest comes back.
void VbdImpl::close_down() {
  tear_down([this] { write_state(XenbusStateClosed); });
}

void VbdImpl::finish() {
  if (std::exchange(let_go_, true)) return;
  frontend_watch_.reset();
  state_watch_.reset();
  online_watch_.reset();
  xentop_.reset();
  if (callbacks_.on_gone) callbacks_.on_gone();
}

void VbdImpl::close() {
  if (queues_.empty())
    close_down();
  else
    write_state(XenbusStateClosing);
}

void VbdImpl::shutdown(std::function<void()> done) {
  let_go_ = true;
  frontend_watch_.reset();
  state_watch_.reset();
  online_watch_.reset();
  tear_down([this, done = std::move(done)] {
    xentop_.reset();
    done();
  });
  if (tearing_down_) hurry();
}

void VbdImpl::pause(std::function<void()> drained) {
  ++paused_;
  auto left = std::make_shared<size_t>(1);
  auto one_less = [left, drained = std::move(drained)] {
    if (--*left == 0) drained();
  };
  for (size_t i = 0; i < queues_.size(); ++i) {
    if (!queues_[i]) continue;
    ++*left;
    run_on(host(i),
           [&] { queues_[i]->quiesce([this, i, one_less] { run_home(host(i), one_less); }); });
  }
  reactor().post(one_less);
}

void VbdImpl::resume() {
  if (--paused_ > 0 || tearing_down_) return;
  for (size_t i = 0; i < queues_.size(); ++i) run_on(host(i), [&] { queues_[i]->resume(); });
}

void VbdImpl::resized() {
  if (state_ != XenbusStateConnected || tearing_down_ || let_go_) return;
  // Frontends look at the size again when Connected is written anew.
  write_connected();
}

bool VbdImpl::write_connected() {
  PropertyNodes nodes = property_nodes(disk());
  const bool written = write_state(XenbusStateConnected, [&](const xen::StoreView& t) {
    return publish_properties(t, id_.backend, nodes, published_);
  });
  if (written) published_ = std::move(nodes);
  return written;
}

Stats VbdImpl::stats() const {
  Stats sum = past_;
  for (const auto& queue : queues_)
    if (queue) sum += queue->stats();
  return sum;
}

DiskProperties VbdImpl::disk() const {
  DiskProperties d;
  d.node = host(0).sink.info();
  d.read_only = id_.read_only || context_.read_only || d.node.read_only;
  d.cdrom = id_.cdrom;
  d.removable = id_.removable;
  d.discard = id_.discard;
  return d;
}

Result<void> VbdImpl::publish(XenbusState state) {
  const bool same = state == state_;
  PropertyNodes nodes = property_nodes(disk());
  Result<void> written = context_.store.transaction([&](const xen::StoreView& t) -> Result<void> {
    VBDKIT_ASSIGN(auto present, t.find(node("state")));
    if (!present) return Error(ErrorKind::kNotFound, id_.backend + ": is gone", ENOENT);
    VBDKIT_TRY(publish_limits(t, id_.backend, limits_));
    VBDKIT_TRY(publish_properties(t, id_.backend, nodes, {}));
    return same ? Result<void>() : t.write(node("state"), std::to_string(state));
  });
  if (!written) return written;
  published_ = std::move(nodes);
  state_ = state;
  if (!same && callbacks_.on_state) callbacks_.on_state(state);
  return {};
}

// Never makes a directory anew that the toolstack has removed. False where it was not written.
bool VbdImpl::write_state(XenbusState state,
                          const std::function<Result<void>(const xen::StoreView&)>& with) {
  bool gone = false;
  auto written = context_.store.transaction([&](const xen::StoreView& t) -> Result<void> {
    VBDKIT_ASSIGN(auto present, t.find(node("state")));
    gone = !present.has_value();
    if (gone) return {};
    if (with) VBDKIT_TRY(with(t));
    return t.write(node("state"), std::to_string(state));
  });
  if (!written)
    context_.log.limited(limit_, LogLevel::kError, "%s: %s", id_.backend.c_str(),
                         written.error().message().c_str());
  if (gone || !written) return false;
  state_ = state;
  if (callbacks_.on_state) callbacks_.on_state(state);
  return true;
}

// As xenbus reports errors: "<errno> <message>" in the device's node "error".
void VbdImpl::report(const Error& error) {
  context_.log.limited(limit_, LogLevel::kWarning, "%s: %s", id_.backend.c_str(),
                       error.message().c_str());
  const std::string text = std::to_string(error.sys_errno()) + " " + error.message();
  auto written = context_.store.transaction([&](const xen::StoreView& t) -> Result<void> {
    VBDKIT_ASSIGN(auto present, t.find(node("state")));
    return present ? t.write(node("error"), text) : Result<void>();
  });
  if (!written)
    context_.log.limited(limit_, LogLevel::kError, "%s: %s", id_.backend.c_str(),
                         written.error().message().c_str());
}

// Does `task` on a queue's thread, and waits for it: queues are opened and closed rarely.
void VbdImpl::run_on(const QueueHost& host, const std::function<void()>& task) {
  if (&host.reactor == &reactor()) {
    task();
    return;
  }
  std::promise<void> done;
  host.reactor.post([&] {
    task();
    done.set_value();
  });
  done.get_future().wait();
}

void VbdImpl::run_home(const QueueHost& from, std::function<void()> task) {
  if (&from.reactor == &reactor())
    task();
  else
    reactor().post(std::move(task));
}

}  // namespace

Result<GrantPolicy> parse_grant_policy(std::string_view name) {
  if (name == "auto") return GrantPolicy::kAuto;
  if (name == "persistent") return GrantPolicy::kPersistent;
  if (name == "map") return GrantPolicy::kMap;
  if (name == "copy") return GrantPolicy::kCopy;
  return Error(ErrorKind::kInvalid,
               "grant policy: " + std::string(name) + ": must be auto, persistent, map or copy");
}

Result<std::unique_ptr<Vbd>> Vbd::create(VbdContext context, const std::string& backend,
                                         VbdCallbacks callbacks) {
  VBDKIT_ASSIGN(Identity id, read_identity(context.store, backend));
  return std::unique_ptr<Vbd>(
      std::make_unique<VbdImpl>(std::move(context), std::move(id), std::move(callbacks)));
}

}  // namespace vbdkit::blkif
