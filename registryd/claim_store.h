// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ClaimStore: who may do what with shared images, as etcd has it:
//     PREFIXhosts/HOST                      a host that lives; bound to its lease
//     PREFIXimages/SHARE/IMAGE/HOST/HOLDER  {"mode":"write","path":…,"pid":…,"start-time":…}
//                                           to merge: also "through", an image
// A claim is not bound to the lease: it counts as long as its host's key is there. So one that was
// cut off for longer than its lease finds, when it is back, that its claims are untouched, or that
// somebody has taken them. Whoever takes an image of a host that is gone removes that one's claims
// in the same transaction, which compares that the host still is gone.
//
// Claims of one host do not exclude each other: on one host the images' locks do
// (drivers/file_lock.h).
//
// Blocks; one thread.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "registryd/etcd_client.h"

namespace vbdkit::registryd {

// kMerge: to write beneath those who read. Readers who were there stay, and have to be dealt with
// by who merges; later ones are let in if they come with the image between (Wish::through).
enum class Mode { kRead, kWrite, kSharedRead, kSharedWrite, kMerge };
const char* to_string(Mode mode);
std::optional<Mode> parse_mode(std::string_view name);
// Whether the two cannot be on two hosts at one time.
bool exclude(Mode a, Mode b);

struct Wish {
  std::string image;  // "san1/i4711"
  Mode mode = Mode::kRead;
  std::string path;  // as this host has it, for those who ask
  // kMerge: readers who want this image too do not see what is written. Empty: all see it.
  std::string through{};
};

struct Claim {
  std::string image;
  std::string host;
  std::string holder;  // an instance's UUID, or what else works on images
  Mode mode = Mode::kRead;
  std::string path;
  pid_t pid = 0;
  uint64_t start_time = 0;  // of the process
  int64_t revision = 0;     // that made it
  std::string through{};
};

// Whether `wish`, one of `all` that are wanted together, cannot be had beside another host's claim.
bool excludes(const Claim& claim, const Wish& wish, const std::vector<Wish>& all);

// Nothing where it is no claim that this program could have written.
std::optional<Claim> parse_claim(std::string_view prefix, const KeyValue& kv);

class ClaimStore {
 public:
  struct Place {
    std::string prefix;
    std::string host;
  };
  struct Holder {
    std::string name;
    pid_t pid = 0;
    uint64_t start_time = 0;
  };

  ClaimStore(EtcdClient& etcd, Place place) : etcd_(etcd), place_(std::move(place)) {}

  // All of them or none; the claims' revisions, in the order of the wishes. `epoch`: of this host's
  // key, on which it depends. kBusy: another host has one, as the message says.
  Result<std::vector<int64_t>> acquire(const Holder& holder, const std::vector<Wish>& wishes,
                                       int64_t epoch);
  Result<void> release(const std::string& holder, const std::vector<std::string>& images);
  // Of claims that were made with these revisions, the names of images whose claim is gone.
  Result<std::vector<std::string>> missing(
      const std::string& holder, const std::vector<std::pair<std::string, int64_t>>& images);
  // Of living hosts.
  Result<std::vector<Claim>> claims_on(const std::string& image);
  // This host's, whoever made them.
  Result<std::vector<Claim>> own_claims();

 private:
  struct Found;
  std::string image_prefix(const std::string& image) const;
  std::string key(const std::string& image, const std::string& holder) const;
  std::string host_key(const std::string& host) const { return place_.prefix + "hosts/" + host; }
  Result<Found> look(const std::vector<std::string>& images);
  Result<std::optional<std::vector<int64_t>>> attempt(const Holder& holder,
                                                      const std::vector<Wish>& wishes,
                                                      const std::vector<Wish>& all, int64_t epoch,
                                                      std::vector<std::string>& made);

  EtcdClient& etcd_;
  const Place place_;
};

}  // namespace vbdkit::registryd
