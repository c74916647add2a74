// SPDX-License-Identifier: LGPL-2.1-or-later
#include "registryd/record_publisher.h"

#include <dirent.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace vbdkit::registryd {

namespace {

constexpr std::chrono::seconds kRetry{1};
constexpr size_t kUpdatesAtOnce = 100;       // operations in a transaction
constexpr size_t kBytesAtOnce = 512 * 1024;  // etcd takes requests of 1.5 MiB
constexpr uint32_t kDirectoryEvents = IN_MOVED_TO | IN_DELETE | IN_ONLYDIR | IN_DONT_FOLLOW;

}  // namespace

Result<std::unique_ptr<RecordPublisher>> RecordPublisher::create(io::Reactor& reactor,
                                                                 EtcdClient etcd,
                                                                 std::string runtime_dir,
                                                                 Place place, const Logger& log) {
  Fd inotify(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!inotify.valid()) return Error::from_errno(errno, "inotify");
  std::unique_ptr<RecordPublisher> publisher(new RecordPublisher(
      reactor, std::move(etcd), std::move(runtime_dir), std::move(place), log, std::move(inotify)));
  VBDKIT_TRY(publisher->start());
  return publisher;
}

RecordPublisher::RecordPublisher(io::Reactor& reactor, EtcdClient etcd, std::string runtime_dir,
                                 Place place, const Logger& log, Fd inotify)
    : reactor_(reactor),
      log_(log),
      registry_(runtime_dir),
      instances_dir_(runtime_dir + "/instances"),
      place_(std::move(place)),
      inotify_(std::move(inotify)),
      later_(reactor.timer([this] { tell(); })),
      self_(std::make_shared<RecordPublisher*>(this)),
      worker_(std::move(etcd)) {}

Result<void> RecordPublisher::start() {
  if (::mkdir(instances_dir_.c_str(), 0700) < 0 && errno != EEXIST)
    return Error::from_errno(errno, "mkdir " + instances_dir_);
  if (::inotify_add_watch(inotify_.get(), instances_dir_.c_str(), IN_CREATE | IN_ONLYDIR) < 0)
    return Error::from_errno(errno, "watch " + instances_dir_);
  events_ = reactor_.watch(inotify_.get(), [this] { read_events(); });
  scan();
  return {};
}

void RecordPublisher::scan() {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(instances_dir_.c_str()), ::closedir);
  if (!dir) return;
  while (const dirent* entry = ::readdir(dir.get())) {
    if (entry->d_name[0] != '.') look_at(entry->d_name);
  }
  for (const auto& [uuid, instance] : instances_) changed(uuid);
}

void RecordPublisher::read_events() {
  alignas(inotify_event) std::array<char, 16384> buffer;
  const ssize_t n = ::read(inotify_.get(), buffer.data(), buffer.size());
  for (ssize_t at = 0; at + static_cast<ssize_t>(sizeof(inotify_event)) <= n;) {
    inotify_event event;
    std::memcpy(&event, buffer.data() + at, sizeof event);
    const char* const name = event.len > 0 ? buffer.data() + at + sizeof event : "";
    at += static_cast<ssize_t>(sizeof event + event.len);
    if (event.mask & IN_Q_OVERFLOW) {
      scan();
    } else if (const auto found = watches_.find(event.wd); found != watches_.end()) {
      const std::string uuid = found->second;
      if (event.mask & IN_IGNORED) watches_.erase(found);
      if ((event.mask & IN_IGNORED) || std::strcmp(name, "record.json") == 0) changed(uuid);
    } else if (event.mask & IN_CREATE) {
      look_at(name);
    }
  }
}

void RecordPublisher::look_at(const std::string& uuid) {
  const int watch =
      ::inotify_add_watch(inotify_.get(), (instances_dir_ + "/" + uuid).c_str(), kDirectoryEvents);
  if (watch < 0) {
    if (errno != ENOTDIR && errno != ENOENT)
      log_.warning("%s", Error::from_errno(errno, "watch instance " + uuid).message().c_str());
    return;
  }
  watches_[watch] = uuid;
  instances_[uuid].watch = watch;
  changed(uuid);  // it may have been there before the watch
}

void RecordPublisher::changed(const std::string& uuid) {
  if (changed_.empty() && !telling_) {
    // At the end of what came with it.
    reactor_.post([self = self_] {
      if (*self != nullptr) (*self)->tell();
    });
  }
  changed_.insert(uuid);
}

void RecordPublisher::set_lease(int64_t lease) {
  if (lease == lease_) return;
  lease_ = lease;
  if (lease == 0) return;
  for (auto& [uuid, instance] : instances_) {
    instance.told = false;
    changed(uuid);
  }
}

RecordPublisher::Update RecordPublisher::update_of(const std::string& uuid) {
  Instance& instance = instances_[uuid];
  const auto record = registry_.read(uuid);
  if (!record || !record->alive) {
    instance.end.reset();
    instance.process = Fd();
    return {uuid, {}};
  }
  if (!instance.process.valid()) {
    instance.process = Fd(static_cast<int>(::syscall(SYS_pidfd_open, record->pid, 0)));
    if (instance.process.valid())
      instance.end = reactor_.watch(instance.process.get(), [this, uuid] {
        instances_[uuid].end.reset();
        changed(uuid);
      });
  }
  control::JsonWriter w;
  w.begin_object().field("host", place_.host).key("shares").begin_array();
  for (const RegistryConfig::Share& share : place_.shares)
    w.begin_object().field("name", share.name).field("path", share.path).end_object();
  w.end_array().key("record").raw(record->json.dump()).end_object();
  return {uuid, w.take()};
}

void RecordPublisher::tell() {
  if (telling_ || lease_ == 0) return;
  std::vector<Update> updates;
  size_t bytes = 0;
  while (!changed_.empty() && updates.size() < kUpdatesAtOnce && bytes < kBytesAtOnce) {
    Update update = update_of(*changed_.begin());
    changed_.erase(changed_.begin());
    Instance& instance = instances_[update.uuid];
    const bool forget = update.value.empty() && !watches_.contains(instance.watch);
    if (!update.value.empty() || instance.told) {
      instance.told = !update.value.empty();
      bytes += update.value.size();
      updates.push_back(std::move(update));
      if (forget) instances_.erase(updates.back().uuid);
    } else if (forget) {
      instances_.erase(update.uuid);
    }
  }
  if (updates.empty()) return;
  telling_ = true;
  worker_.run([self = self_, &reactor = reactor_, updates = std::move(updates), lease = lease_,
               prefix = place_.prefix + "instances/"](EtcdClient& etcd) {
    Txn txn;
    for (const Update& update : updates) {
      if (update.value.empty())
        txn.remove(prefix + update.uuid);
      else
        txn.put(prefix + update.uuid, update.value, lease);
    }
    const auto answer = etcd.txn(txn);
    Result<void> result = answer ? Result<void>() : Result<void>(answer.error());
    reactor.post([self, updates, lease, result] {
      if (*self != nullptr) (*self)->told(updates, lease, result);
    });
  });
}

void RecordPublisher::told(const std::vector<Update>& updates, int64_t lease,
                           const Result<void>& result) {
  telling_ = false;
  if (!result && lease == lease_) {
    log_.debug("records: %s", result.error().message().c_str());
    // As gone ones are not known any more, they are to be told again as what they were.
    for (const Update& update : updates) {
      instances_[update.uuid].told = true;
      changed_.insert(update.uuid);
    }
    later_->arm(io::Timer::Clock::now() + kRetry);
    return;
  }
  if (!changed_.empty()) tell();
}

}  // namespace vbdkit::registryd
