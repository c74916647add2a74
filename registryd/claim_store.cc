// SPDX-License-Identifier: LGPL-2.1-or-later
#include "registryd/claim_store.h"

#include <algorithm>
#include <set>

#include "backend/control/json.h"

namespace vbdkit::registryd {

namespace {

// etcd takes 128 operations in one transaction where it was not told otherwise.
constexpr size_t kImagesAtOnce = 40;
constexpr size_t kMaxActions = 120;
constexpr unsigned kAttempts = 8;
constexpr uint64_t kPage = 500;  // keys

constexpr struct {
  Mode mode;
  const char* name;
} kModes[] = {{Mode::kRead, "read"},
              {Mode::kWrite, "write"},
              {Mode::kSharedRead, "shared-read"},
              {Mode::kSharedWrite, "shared-write"},
              {Mode::kMerge, "merge"}};

std::string value_of(const Wish& wish, const ClaimStore::Holder& holder) {
  control::JsonWriter w;
  w.begin_object().field("mode", to_string(wish.mode)).field("path", wish.path);
  w.field("pid", static_cast<uint64_t>(holder.pid)).field("start-time", holder.start_time);
  if (!wish.through.empty()) w.field("through", wish.through);
  w.end_object();
  return w.take();
}

Error taken(const Claim& claim, const Wish& wish) {
  return Error(ErrorKind::kBusy,
               wish.path + " (" + wish.image + ") is in use on host " + claim.host + " by " +
                   claim.holder + " (" + to_string(claim.mode) + ", " + claim.path + ")",
               EBUSY);
}

}  // namespace

const char* to_string(Mode mode) {
  for (const auto& known : kModes)
    if (known.mode == mode) return known.name;
  return "";
}

std::optional<Mode> parse_mode(std::string_view name) {
  for (const auto& known : kModes)
    if (known.name == name) return known.mode;
  return std::nullopt;
}

bool exclude(Mode a, Mode b) {
  if (a == Mode::kWrite || b == Mode::kWrite) return true;
  if (a == Mode::kMerge) return b != Mode::kRead;
  if (b == Mode::kMerge) return a != Mode::kRead;
  return (a == Mode::kSharedWrite && b == Mode::kRead) ||
         (a == Mode::kRead && b == Mode::kSharedWrite);
}

bool excludes(const Claim& claim, const Wish& wish, const std::vector<Wish>& all) {
  if (exclude(claim.mode, wish.mode)) return true;
  return claim.mode == Mode::kMerge &&
         std::ranges::none_of(all, [&](const Wish& w) { return w.image == claim.through; });
}

std::optional<Claim> parse_claim(std::string_view prefix, const KeyValue& kv) {
  std::string_view rest = kv.key;
  const std::string images = std::string(prefix) + "images/";
  if (!rest.starts_with(images)) return std::nullopt;
  rest.remove_prefix(images.size());
  const size_t holder_at = rest.rfind('/');
  if (holder_at == rest.npos || holder_at == 0) return std::nullopt;
  const size_t host_at = rest.rfind('/', holder_at - 1);
  if (host_at == rest.npos || host_at == 0) return std::nullopt;
  const auto json = control::Json::parse(kv.value);
  const auto mode =
      json ? parse_mode(json->member("mode").string().value_or("")) : std::optional<Mode>();
  if (!mode) return std::nullopt;
  return Claim{.image = std::string(rest.substr(0, host_at)),
               .host = std::string(rest.substr(host_at + 1, holder_at - host_at - 1)),
               .holder = std::string(rest.substr(holder_at + 1)),
               .mode = *mode,
               .path = json->member("path").string().value_or(""),
               .pid = static_cast<pid_t>(json->member("pid").number().value_or(0)),
               .start_time = json->member("start-time").number().value_or(0),
               .revision = kv.create_revision,
               .through = json->member("through").string().value_or("")};
}

struct ClaimStore::Found {
  int64_t revision = 0;
  std::vector<Claim> claims;
  std::set<std::string> hosts;  // that live
};

std::string ClaimStore::image_prefix(const std::string& image) const {
  return place_.prefix + "images/" + image + "/";
}

std::string ClaimStore::key(const std::string& image, const std::string& holder) const {
  return image_prefix(image) + place_.host + "/" + holder;
}

// At one moment.
Result<ClaimStore::Found> ClaimStore::look(const std::vector<std::string>& images) {
  Txn txn;
  const std::string hosts = host_key("");
  txn.read_prefix(hosts);
  for (const std::string& image : images) txn.read_prefix(image_prefix(image));
  VBDKIT_ASSIGN(const TxnAnswer answer, etcd_.txn(txn));
  if (answer.ranges.size() != images.size() + 1)
    return Error(ErrorKind::kProtocol, "etcd: it has answered another question");
  Found found;
  found.revision = answer.revision;
  for (const KeyValue& kv : answer.ranges[0].values) {
    if (kv.key.starts_with(hosts)) found.hosts.insert(kv.key.substr(hosts.size()));
  }
  for (size_t i = 1; i < answer.ranges.size(); ++i) {
    for (const KeyValue& kv : answer.ranges[i].values) {
      auto claim = parse_claim(place_.prefix, kv);
      // Better nobody has the image than two have.
      if (!claim)
        return Error(ErrorKind::kProtocol, "etcd: " + kv.key + " is no claim that can be read");
      found.claims.push_back(std::move(*claim));
    }
  }
  return found;
}

// Nothing where somebody was faster and it has to be looked at again.
Result<std::optional<std::vector<int64_t>>> ClaimStore::attempt(const Holder& holder,
                                                                const std::vector<Wish>& wishes,
                                                                const std::vector<Wish>& all,
                                                                int64_t epoch,
                                                                std::vector<std::string>& made) {
  std::vector<std::string> images;
  for (const Wish& wish : wishes) images.push_back(wish.image);
  VBDKIT_ASSIGN(const Found found, look(images));
  Txn txn;
  txn.if_created(host_key(place_.host), epoch);
  std::vector<int64_t> revisions(wishes.size(), 0);
  std::set<std::string> gone;
  for (size_t i = 0; i < wishes.size(); ++i) {
    txn.if_unchanged(image_prefix(wishes[i].image), found.revision);
    for (const Claim& claim : found.claims) {
      if (claim.image != wishes[i].image) continue;
      if (claim.host == place_.host) {
        if (claim.holder == holder.name) revisions[i] = claim.revision;
        continue;
      }
      if (!excludes(claim, wishes[i], all)) continue;
      if (found.hosts.contains(claim.host)) return taken(claim, wishes[i]);
      gone.insert(claim.host);
      txn.remove(image_prefix(claim.image) + claim.host + "/" + claim.holder);
    }
    txn.put(key(wishes[i].image, holder.name), value_of(wishes[i], holder));
  }
  for (const std::string& host : gone) txn.if_absent(host_key(host));
  if (txn.actions() > kMaxActions)
    return Error(ErrorKind::kUnsupported, "etcd: too many claims of hosts that are gone");
  VBDKIT_ASSIGN(const TxnAnswer answer, etcd_.txn(txn));
  if (!answer.succeeded) {
    VBDKIT_ASSIGN(const RangeAnswer host, etcd_.range(host_key(place_.host)));
    if (host.values.empty() || host.values[0].create_revision != epoch)
      return Error(ErrorKind::kTimedOut, "etcd: this host's lease has ended");
    return std::optional<std::vector<int64_t>>();
  }
  for (size_t i = 0; i < wishes.size(); ++i) {
    if (revisions[i] != 0) continue;
    revisions[i] = answer.revision;
    made.push_back(wishes[i].image);
  }
  return std::optional<std::vector<int64_t>>(std::move(revisions));
}

Result<std::vector<int64_t>> ClaimStore::acquire(const Holder& holder,
                                                 const std::vector<Wish>& wishes, int64_t epoch) {
  std::vector<int64_t> revisions;
  std::vector<std::string> made;
  const auto give_back = [&](Error error) {
    // What remains of it counts as ours until this holder has ended.
    if (!made.empty()) (void)release(holder.name, made).ok();
    return error;
  };
  for (size_t at = 0; at < wishes.size(); at += kImagesAtOnce) {
    const std::vector<Wish> some(
        wishes.begin() + static_cast<ptrdiff_t>(at),
        wishes.begin() + static_cast<ptrdiff_t>(std::min(at + kImagesAtOnce, wishes.size())));
    std::optional<std::vector<int64_t>> done;
    for (unsigned i = 0; i < kAttempts && !done; ++i) {
      auto attempted = attempt(holder, some, wishes, epoch, made);
      if (!attempted) return give_back(std::move(attempted).error());
      done = std::move(*attempted);
    }
    if (!done)
      return give_back(Error(ErrorKind::kBusy, "etcd: too many others want " + some[0].path));
    revisions.insert(revisions.end(), done->begin(), done->end());
  }
  return revisions;
}

Result<void> ClaimStore::release(const std::string& holder,
                                 const std::vector<std::string>& images) {
  for (size_t at = 0; at < images.size();) {
    Txn txn;
    for (; at < images.size() && txn.actions() < kMaxActions; ++at)
      txn.remove(key(images[at], holder));
    VBDKIT_ASSIGN(const TxnAnswer answer, etcd_.txn(txn));
    (void)answer;
  }
  return {};
}

Result<std::vector<std::string>> ClaimStore::missing(
    const std::string& holder, const std::vector<std::pair<std::string, int64_t>>& images) {
  std::vector<std::string> gone;
  for (size_t at = 0; at < images.size(); at += kImagesAtOnce) {
    const size_t end = std::min(at + kImagesAtOnce, images.size());
    std::vector<std::string> names;
    for (size_t i = at; i < end; ++i) names.push_back(images[i].first);
    VBDKIT_ASSIGN(const Found found, look(names));
    for (size_t i = at; i < end; ++i) {
      const bool there = std::ranges::any_of(found.claims, [&](const Claim& claim) {
        return claim.image == images[i].first && claim.host == place_.host &&
               claim.holder == holder && claim.revision == images[i].second;
      });
      if (!there) gone.push_back(images[i].first);
    }
  }
  return gone;
}

Result<std::vector<Claim>> ClaimStore::claims_on(const std::string& image) {
  VBDKIT_ASSIGN(Found found, look({image}));
  std::erase_if(found.claims, [&](const Claim& c) { return !found.hosts.contains(c.host); });
  return std::move(found.claims);
}

Result<std::vector<Claim>> ClaimStore::own_claims() {
  std::vector<Claim> own;
  const std::string all = place_.prefix + "images/";
  for (std::string from = all;;) {
    VBDKIT_ASSIGN(const RangeAnswer page, etcd_.range_prefix(all, from, kPage));
    for (const KeyValue& kv : page.values) {
      auto claim = parse_claim(place_.prefix, kv);
      if (claim && claim->host == place_.host) own.push_back(std::move(*claim));
    }
    if (!page.more || page.values.empty()) return own;
    from = page.values.back().key + '\0';
  }
}

}  // namespace vbdkit::registryd
