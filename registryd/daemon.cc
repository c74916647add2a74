// SPDX-License-Identifier: LGPL-2.1-or-later
#include "registryd/daemon.h"

#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "base/process.h"
#include "config.h"

namespace vbdkit::registryd {

using control::Json;
using control::JsonWriter;
using control::Reply;

namespace {

constexpr std::chrono::seconds kRetry{1};
constexpr size_t kMaxClients = 1024;  // connections; each asks and goes
// Few enough for a client to take in one answer.
constexpr uint64_t kPageOfInstances = 100;
constexpr size_t kPageBytes = 256 * 1024;
constexpr size_t kMinPrefix = 4;  // digits of a UUID

Error invalid(const char* name) {
  return Error(ErrorKind::kInvalid, std::string("Parameter '") + name + "' is missing or wrong");
}

// Parts of keys.
bool is_part(std::string_view text) {
  return !text.empty() && text.size() <= 255 && text.front() != '.' &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                  c == '-' || c == '_' || c == '.' || c == '+' || c == ':';
         });
}

bool is_image(std::string_view text) {
  const size_t slash = text.find('/');
  return slash != text.npos && is_part(text.substr(0, slash)) && is_part(text.substr(slash + 1));
}

Result<std::string> part(const Json& arguments, const char* name) {
  auto value = arguments.member(name).string();
  if (!value || !is_part(*value)) return invalid(name);
  return std::move(*value);
}

Result<std::string> image_name(const Json& value) {
  auto name = value.string();
  if (!name || !is_image(*name)) return invalid("image");
  return std::move(*name);
}

Result<std::vector<Wish>> wishes_in(const Json& images) {
  if (!images.is_array() || images.size() == 0) return invalid("images");
  std::vector<Wish> wishes;
  for (size_t i = 0; i < images.size(); ++i) {
    Wish wish;
    VBDKIT_ASSIGN(wish.image, image_name(images.at(i).member("image")));
    const auto mode = parse_mode(images.at(i).member("mode").string().value_or(""));
    if (!mode) return invalid("mode");
    wish.mode = *mode;
    wish.path = images.at(i).member("path").string().value_or("");
    if (const Json through = images.at(i).member("through"); through.string()) {
      VBDKIT_ASSIGN(wish.through, image_name(through));
    }
    wishes.push_back(std::move(wish));
  }
  return wishes;
}

// {"host":…,"record":…}, as publishers write it; nothing where it is something else.
std::optional<std::string> published(const KeyValue& kv) {
  const auto json = Json::parse(kv.value);
  if (!json || !json->member("host").string() || !json->member("record").is_object())
    return std::nullopt;
  return json->dump();
}

std::string read_line(const char* path) {
  const auto fd = Fd::open(path, O_RDONLY);
  std::array<char, 128> text{};
  const ssize_t n = fd ? ::read(fd->get(), text.data(), text.size()) : 0;
  std::string line(text.data(), n > 0 ? static_cast<size_t>(n) : 0);
  return line.substr(0, line.find('\n'));
}

}  // namespace

Result<std::unique_ptr<Daemon>> Daemon::create(io::Reactor& reactor, const Logger& log,
                                               RegistryConfig config, std::string runtime_dir) {
  std::unique_ptr<Daemon> daemon(
      new Daemon(reactor, log, std::move(config), std::move(runtime_dir)));
  VBDKIT_TRY(daemon->start());
  return daemon;
}

Daemon::Daemon(io::Reactor& reactor, const Logger& log, RegistryConfig config,
               std::string runtime_dir)
    : reactor_(reactor),
      log_(log),
      config_(std::move(config)),
      runtime_dir_(std::move(runtime_dir)),
      later_(reactor.timer([this] { give_up_rest(); })),
      self_(std::make_shared<Daemon*>(this)) {
  lease_.reason = "etcd: it has not answered yet";
}

Daemon::~Daemon() { *self_ = nullptr; }

Result<EtcdClient> Daemon::client() {
  return EtcdClient::create(
      {.endpoints = config_.endpoints,
       .tls = {.ca = config_.ca, .certificate = config_.certificate, .key = config_.key},
       .counters = &counters_});
}

Result<LeaseKeeper::Options> Daemon::lease_options() const {
  // Another machine with our name must not take itself for us.
  LeaseKeeper::Options options{.key = config_.prefix + "hosts/" + config_.host,
                               .value = {},
                               .machine = read_line("/etc/machine-id"),
                               .ttl = config_.lease};
  JsonWriter w;
  w.begin_object().field("machine", options.machine);
  w.field("boot", read_line("/proc/sys/kernel/random/boot_id"));
  w.field("pid", static_cast<uint64_t>(::getpid())).end_object();
  options.value = w.take();
  return options;
}

Result<void> Daemon::start() {
  if (::mkdir(runtime_dir_.c_str(), 0700) < 0 && errno != EEXIST)
    return Error::from_errno(errno, "mkdir " + runtime_dir_);
  VBDKIT_ASSIGN(lock_, Fd::open(runtime_dir_ + "/registry.lock", O_RDWR | O_CREAT, 0600));
  if (::flock(lock_.get(), LOCK_EX | LOCK_NB) < 0)
    return Error(ErrorKind::kBusy, "another vbdkit-registryd runs in " + runtime_dir_);
  VBDKIT_ASSIGN(LeasePage page, LeasePage::create(runtime_dir_));
  VBDKIT_ASSIGN(EtcdClient for_records, client());
  VBDKIT_ASSIGN(EtcdClient for_claims, client());
  VBDKIT_ASSIGN(EtcdClient for_questions, client());
  VBDKIT_ASSIGN(EtcdClient for_lease, client());
  VBDKIT_ASSIGN(publisher_,
                RecordPublisher::create(reactor_, std::move(for_records), runtime_dir_,
                                        {config_.prefix, config_.host, config_.roots()}, log_));
  claims_ = std::make_unique<EtcdWorker>(std::move(for_claims));
  questions_ = std::make_unique<EtcdWorker>(std::move(for_questions));
  add_commands();
  VBDKIT_ASSIGN(server_, control::QmpServer::create(reactor_, log_, commands_,
                                                    {.path = runtime_dir_ + "/registry.sock",
                                                     .max_sessions = kMaxClients,
                                                     .version = VERSION}));
  VBDKIT_ASSIGN(auto options, lease_options());
  keeper_ = std::make_unique<LeaseKeeper>(
      std::move(for_lease), std::move(page), std::move(options), log_,
      [self = self_, &reactor = reactor_](const LeaseKeeper::State& state) {
        reactor.post([self, state] {
          if (*self != nullptr) (*self)->lease_changed(state);
        });
      });
  return {};
}

void Daemon::add_commands() {
  const auto add = [this](const char* name, std::vector<std::string_view> arguments,
                          void (Daemon::*run)(const Json&, Reply)) {
    commands_.add(name, std::move(arguments), [this, run](const Json& given, Reply reply) {
      (this->*run)(given, std::move(reply));
    });
  };
  add("registry-claim", {"holder", "images"}, &Daemon::claim);
  add("registry-resume", {"holder", "images"}, &Daemon::resume);
  add("registry-release", {"holder", "images"}, &Daemon::release);
  add("registry-image", {"image"}, &Daemon::image);
  add("registry-instance", {"uuid"}, &Daemon::instance);
  add("registry-instances", {"after"}, &Daemon::instances);
  commands_.add("registry-status", {},
                [this](const Json&, Reply reply) { status(std::move(reply)); });
}

template <typename T>
void Daemon::ask_etcd(std::function<Result<T>(EtcdClient&)> ask,
                      std::function<void(Result<T>)> then) {
  questions_->run([self = self_, &reactor = reactor_, ask = std::move(ask),
                   then = std::move(then)](EtcdClient& etcd) {
    auto result = std::make_shared<Result<T>>(ask(etcd));
    reactor.post([self, result, then] {
      if (*self != nullptr) then(std::move(*result));
    });
  });
}

Result<void> Daemon::held() const {
  if (lease_.held) return {};
  return Error(ErrorKind::kTimedOut, "this host has no lease: " + lease_.reason);
}

Result<void> Daemon::watch_process(Holder& holder) {
  holder.process = Fd(static_cast<int>(::syscall(SYS_pidfd_open, holder.who.pid, 0)));
  if (!holder.process.valid() ||
      process_start_time(holder.who.pid).value_or(0) != holder.who.start_time)
    return Error(ErrorKind::kNotFound, "process " + std::to_string(holder.who.pid) + " has ended");
  holder.end =
      reactor_.watch(holder.process.get(), [this, name = holder.who.name] { ended(name); });
  return {};
}

Result<Daemon::Holder*> Daemon::holder_of(const std::string& name, pid_t pid) {
  const auto start_time = process_start_time(pid);
  if (!start_time) return Error(ErrorKind::kNotFound, "it cannot be told which process asks");
  if (const auto known = holders_.find(name); known != holders_.end()) {
    if (known->second.who.pid == pid && known->second.who.start_time == *start_time)
      return &known->second;
    return Error(ErrorKind::kBusy, name + " is another process");
  }
  Holder holder{.who = {name, pid, *start_time}, .images = {}, .process = {}, .end = nullptr};
  VBDKIT_TRY(watch_process(holder));
  return &holders_.emplace(name, std::move(holder)).first->second;
}

void Daemon::ended(const std::string& name) {
  auto holder = holders_.extract(name);
  if (!holder.empty()) give_up(name, std::move(holder.mapped().images));
}

void Daemon::give_up(const std::string& holder, std::set<std::string> images) {
  unwanted_[holder].merge(images);
  give_up_rest();
}

// One round at a time; what comes meanwhile goes with the next.
void Daemon::give_up_rest() {
  std::erase_if(unwanted_, [](const auto& entry) { return entry.second.empty(); });
  if (giving_up_ || unwanted_.empty()) return;
  giving_up_ = true;
  const std::string holder = unwanted_.begin()->first;
  const std::set<std::string> images = unwanted_.begin()->second;
  claims_->run(
      [self = self_, &reactor = reactor_, place = place(), holder, images](EtcdClient& etcd) {
        ClaimStore store(etcd, place);
        const bool done = store.release(holder, {images.begin(), images.end()}).ok();
        reactor.post([self, holder, images, done] {
          if (*self == nullptr) return;
          Daemon& daemon = **self;
          daemon.giving_up_ = false;
          if (!done) return daemon.later_->arm(io::Timer::Clock::now() + kRetry);
          for (const std::string& image : images) daemon.unwanted_[holder].erase(image);
          daemon.give_up_rest();
        });
      });
}

void Daemon::lease_changed(const LeaseKeeper::State& state) {
  if (state.held && !lease_.held) log_.notice("%s: the lease is held", config_.host.c_str());
  lease_ = state;
  publisher_->set_lease(state.held ? state.lease : 0);
  if (!state.held || adopted_) return;
  // What this host has claimed in earlier lives of ours.
  adopted_ = true;
  claims_->run([self = self_, &reactor = reactor_, place = place()](EtcdClient& etcd) {
    auto own = std::make_shared<Result<std::vector<Claim>>>(ClaimStore(etcd, place).own_claims());
    reactor.post([self, own] {
      if (*self == nullptr) return;
      if (*own)
        (*self)->adopt(**own);
      else
        (*self)->adopted_ = false;  // with the next change of the lease
    });
  });
}

void Daemon::adopt(const std::vector<Claim>& own) {
  for (const Claim& claim : own) {
    auto known = holders_.find(claim.holder);
    if (known == holders_.end()) {
      Holder holder{.who = {claim.holder, claim.pid, claim.start_time},
                    .images = {},
                    .process = {},
                    .end = nullptr};
      if (!watch_process(holder)) {
        give_up(claim.holder, {claim.image});
        continue;
      }
      known = holders_.emplace(claim.holder, std::move(holder)).first;
    }
    known->second.images.insert(claim.image);
  }
}

void Daemon::claim(const Json& arguments, Reply reply) {
  const auto name = part(arguments, "holder");
  if (!name) return reply.error(name.error());
  auto wishes = wishes_in(arguments.member("images"));
  if (!wishes) return reply.error(wishes.error());
  if (const auto lease = held(); !lease) return reply.error(lease.error());
  const auto holder = holder_of(*name, reply.peer());
  if (!holder) return reply.error(holder.error());
  // Known before they are made, so that its end takes them back in any case.
  for (const Wish& wish : *wishes) {
    (*holder)->images.insert(wish.image);
    if (const auto left = unwanted_.find(*name); left != unwanted_.end())
      left->second.erase(wish.image);
  }
  const SharedReply held_reply = std::make_shared<Reply>(std::move(reply));
  claims_->run([&reactor = reactor_, place = place(), who = (*holder)->who,
                wishes = std::move(*wishes), epoch = lease_.epoch, held_reply](EtcdClient& etcd) {
    const auto revisions = ClaimStore(etcd, place).acquire(who, wishes, epoch);
    reactor.post([revisions, epoch, held_reply] {
      if (!revisions) return held_reply->error(revisions.error());
      JsonWriter w;
      w.begin_object().field("epoch", static_cast<uint64_t>(epoch));
      w.key("revisions").begin_array();
      for (const int64_t revision : *revisions) w.number(static_cast<uint64_t>(revision));
      w.end_array().end_object();
      held_reply->value(w.take());
    });
  });
}

void Daemon::resume(const Json& arguments, Reply reply) {
  const auto name = part(arguments, "holder");
  if (!name) return reply.error(name.error());
  std::vector<std::pair<std::string, int64_t>> images;
  const Json given = arguments.member("images");
  for (size_t i = 0; i < given.size(); ++i) {
    auto image = image_name(given.at(i).member("image"));
    if (!image) return reply.error(image.error());
    const uint64_t revision = given.at(i).member("revision").number().value_or(0);
    images.emplace_back(std::move(*image), static_cast<int64_t>(revision));
  }
  if (const auto lease = held(); !lease) return reply.error(lease.error());
  const auto holder = holder_of(*name, reply.peer());
  if (!holder) return reply.error(holder.error());
  for (const auto& [image, revision] : images) (*holder)->images.insert(image);
  const SharedReply held_reply = std::make_shared<Reply>(std::move(reply));
  claims_->run([&reactor = reactor_, place = place(), holder_name = *name, images,
                epoch = lease_.epoch, held_reply](EtcdClient& etcd) {
    const auto missing = ClaimStore(etcd, place).missing(holder_name, images);
    reactor.post([missing, epoch, held_reply] {
      if (!missing) return held_reply->error(missing.error());
      JsonWriter w;
      w.begin_object().field("epoch", static_cast<uint64_t>(epoch));
      w.key("missing").begin_array();
      for (const std::string& image : *missing) w.string(image);
      w.end_array().end_object();
      held_reply->value(w.take());
    });
  });
}

// Answered when it is done, where etcd can be asked; else it is done when it can.
void Daemon::release(const Json& arguments, Reply reply) {
  const auto name = part(arguments, "holder");
  if (!name) return reply.error(name.error());
  std::set<std::string> images;
  const Json given = arguments.member("images");
  for (size_t i = 0; i < given.size(); ++i) {
    auto image = image_name(given.at(i));
    if (!image) return reply.error(image.error());
    images.insert(std::move(*image));
  }
  const auto known = holders_.find(*name);
  if (known != holders_.end()) {
    if (known->second.who.pid != reply.peer())
      return reply.error("GenericError", *name + " is another process");
    for (const std::string& image : images) known->second.images.erase(image);
  }
  give_up(*name, std::move(images));
  if (!lease_.held) return reply.ok();
  // Behind it in the line.
  const SharedReply held_reply = std::make_shared<Reply>(std::move(reply));
  claims_->run([&reactor = reactor_, held_reply](EtcdClient&) {
    reactor.post([held_reply] { held_reply->ok(); });
  });
}

void Daemon::image(const Json& arguments, Reply reply) {
  auto name = image_name(arguments.member("image"));
  if (!name) return reply.error(name.error());
  const SharedReply held_reply = std::make_shared<Reply>(std::move(reply));
  ask_etcd<std::vector<Claim>>(
      [place = place(), name = *name](EtcdClient& etcd) {
        return ClaimStore(etcd, place).claims_on(name);
      },
      [held_reply](Result<std::vector<Claim>> claims) {
        if (!claims) return held_reply->error(claims.error());
        JsonWriter w;
        w.begin_array();
        for (const Claim& claim : *claims) {
          w.begin_object().field("host", claim.host).field("holder", claim.holder);
          w.field("mode", to_string(claim.mode)).field("path", claim.path).end_object();
        }
        w.end_array();
        held_reply->value(w.take());
      });
}

void Daemon::instance(const Json& arguments, Reply reply) {
  const auto uuid = part(arguments, "uuid");
  if (!uuid) return reply.error(uuid.error());
  const SharedReply held_reply = std::make_shared<Reply>(std::move(reply));
  const std::string key = config_.prefix + "instances/" + *uuid;
  ask_etcd<RangeAnswer>(
      [key](EtcdClient& etcd) { return etcd.range_prefix(key, {}, 2); },
      [held_reply, key, uuid = *uuid](Result<RangeAnswer> found) {
        if (!found) return held_reply->error(found.error());
        auto& values = found->values;
        const bool exact = !values.empty() && values[0].key == key;
        if (values.empty() || (!exact && uuid.size() < kMinPrefix))
          return held_reply->error(
              Error(ErrorKind::kNotFound, "no instance " + uuid + " runs on any host"));
        if (!exact && values.size() > 1)
          return held_reply->error("GenericError",
                                   uuid + " may be several instances: say more of it");
        const auto text = published(values[0]);
        if (!text) return held_reply->error("GenericError", "the record of " + uuid + " is broken");
        held_reply->value(*text);
      });
}

void Daemon::instances(const Json& arguments, Reply reply) {
  const std::string after = arguments.member("after").string().value_or("");
  if (!after.empty() && !is_part(after)) return reply.error(invalid("after"));
  const SharedReply held_reply = std::make_shared<Reply>(std::move(reply));
  const std::string all = config_.prefix + "instances/";
  ask_etcd<RangeAnswer>(
      [all, after](EtcdClient& etcd) {
        return etcd.range_prefix(all, after.empty() ? all : all + after + '\0', kPageOfInstances);
      },
      [held_reply, all](Result<RangeAnswer> page) {
        if (!page) return held_reply->error(page.error());
        JsonWriter w;
        size_t bytes = 0;
        w.begin_object().key("instances").begin_array();
        std::string last;
        bool more = page->more;
        for (const KeyValue& kv : page->values) {
          more = more || bytes > kPageBytes;
          if (bytes > kPageBytes) break;
          last = kv.key.substr(std::min(all.size(), kv.key.size()));
          if (const auto text = published(kv)) {
            w.raw(*text);
            bytes += text->size();
          }
        }
        w.end_array();
        if (more) w.field("more-after", last);
        w.end_object();
        held_reply->value(w.take());
      });
}

void Daemon::status(Reply reply) const {
  JsonWriter w;
  w.begin_object().field("host", config_.host).field("held", lease_.held);
  if (!lease_.held) w.field("reason", lease_.reason);
  w.field("epoch", static_cast<uint64_t>(lease_.epoch));
  w.field("lease-seconds", static_cast<uint64_t>(config_.lease.count()));
  w.key("endpoints").begin_array();
  for (const std::string& endpoint : config_.endpoints) w.string(endpoint);
  w.end_array();
  w.field("requests", counters_.requests.load());
  w.field("bytes-sent", counters_.bytes_sent.load());
  w.field("bytes-received", counters_.bytes_received.load());
  w.end_object();
  reply.value(w.take());
}

}  // namespace vbdkit::registryd
