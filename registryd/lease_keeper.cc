// SPDX-License-Identifier: LGPL-2.1-or-later
#include "registryd/lease_keeper.h"

#include <algorithm>

#include "backend/control/json.h"

namespace vbdkit::registryd {

namespace {

using std::chrono::milliseconds;

constexpr int kTurnsPerLease = 3;   // keepalives
constexpr int kTriesPerLease = 10;  // where one has failed
constexpr int kMarginPart = 10;     // of the lease
constexpr int kReservePart = 5;     // of the lease
constexpr milliseconds kLeastMargin{300};

}  // namespace

LeaseKeeper::LeaseKeeper(EtcdClient etcd, LeasePage page, Options options, const Logger& log,
                         std::function<void(const State&)> changed)
    : etcd_(std::move(etcd)),
      page_(std::move(page)),
      options_(std::move(options)),
      log_(log),
      changed_(std::move(changed)) {
  // One that does not answer leaves time for others to be asked before the lease ends.
  etcd_.set_timeout(milliseconds(options_.ttl) / kTurnsPerLease);
  thread_ = std::thread([this] { loop(); });
}

LeaseKeeper::~LeaseKeeper() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  ending_changed_.notify_one();
  thread_.join();
}

void LeaseKeeper::loop() {
  for (std::unique_lock lock(mutex_); !ending_;) {
    lock.unlock();
    const auto began = std::chrono::steady_clock::now();
    const auto done = turn();
    if (!done) {
      // It may have been heard all the same; certain is only what was before.
      const bool over = BootClock::now() >= certain_until_;
      if (told_reason_ != done.error().message()) {
        told_reason_ = done.error().message();
        log_.warning("lease: %s", told_reason_.c_str());
      }
      tell({.held = state_.held && !over,
            .lease = lease_,
            .epoch = epoch_,
            .reason = done.error().message()});
    } else if (!std::exchange(told_reason_, "").empty()) {
      log_.notice("lease: etcd answers again");
    }
    lock.lock();
    const auto pause = milliseconds(options_.ttl) / (done ? kTurnsPerLease : kTriesPerLease);
    ending_changed_.wait_until(lock, began + pause, [this] { return ending_; });
  }
}

void LeaseKeeper::tell(State state) {
  if (state == state_) return;
  state_ = std::move(state);
  changed_(state_);
}

void LeaseKeeper::publish(BootClock::time_point sent, std::chrono::seconds ttl) {
  const auto margin = std::max(kLeastMargin, milliseconds(ttl) / kMarginPart);
  certain_until_ = sent + ttl - margin - milliseconds(ttl) / kReservePart;
  page_.publish(static_cast<uint64_t>(epoch_), certain_until_);
  tell({.held = true, .lease = lease_, .epoch = epoch_, .reason = {}});
}

void LeaseKeeper::lost(const std::string& reason) {
  page_.close();
  certain_until_ = {};
  lease_ = 0;
  log_.warning("lease: %s", reason.c_str());
  tell({.held = false, .lease = 0, .epoch = epoch_, .reason = reason});
}

Result<void> LeaseKeeper::turn() {
  if (lease_ == 0) return begin();
  const auto sent = BootClock::now();
  VBDKIT_ASSIGN(const LeaseAnswer lease, etcd_.keepalive(lease_));
  if (lease.ttl <= 0) {
    lost("it has ended at etcd; others may have taken what was ours");
    return begin();
  }
  VBDKIT_ASSIGN(const RangeAnswer host, etcd_.range(options_.key));
  if (host.values.empty() || host.values[0].lease != lease_ ||
      host.values[0].create_revision != epoch_) {
    lost(options_.key + " was taken away or changed by somebody else");
    return begin();
  }
  publish(sent, std::chrono::seconds(lease.ttl));
  return {};
}

Result<void> LeaseKeeper::begin() {
  const auto sent = BootClock::now();
  VBDKIT_ASSIGN(const LeaseAnswer lease, etcd_.grant(options_.ttl.count()));
  lease_ = lease.id;
  if (auto taken = take_key(); !taken) {
    // It ends by itself. Not before its time: the key may be bound to it already, and with the key
    // would go what this host still believes to have.
    lease_ = 0;
    return taken;
  }
  publish(sent, std::chrono::seconds(lease.ttl));
  return {};
}

// That of an earlier vbdkit-registryd of this host is kept: it has lived without a break, and with
// it what this host has.
Result<void> LeaseKeeper::take_key() {
  VBDKIT_ASSIGN(const RangeAnswer host, etcd_.range(options_.key));
  Txn txn;
  epoch_ = host.values.empty() ? 0 : host.values[0].create_revision;
  if (epoch_ != 0) {
    const auto json = control::Json::parse(host.values[0].value);
    const auto machine = json ? json->member("machine").string() : std::nullopt;
    if (machine != options_.machine)
      return Error(ErrorKind::kBusy,
                   "etcd: another machine has the name of this host (" + options_.key + ")");
  }
  txn.if_created(options_.key, epoch_).put(options_.key, options_.value, lease_);
  VBDKIT_ASSIGN(const TxnAnswer answer, etcd_.txn(txn));
  if (!answer.succeeded)
    return Error(ErrorKind::kBusy, "etcd: " + options_.key + " is changed by somebody else");
  if (epoch_ == 0) epoch_ = answer.revision;
  return {};
}

}  // namespace vbdkit::registryd
