// SPDX-License-Identifier: LGPL-2.1-or-later
//
// nbdload: keeps N requests in flight on one NBD connection, with batched sends and receives, so
// that the server and not the client is what is measured (fio's nbd engine saturates first).
//
//   nbdload --socket PATH [--rw randread|randwrite|read|write] [--bs BYTES] [--qd N] [--seconds S]
//           [--ios N] [--rate N] [--export NAME] [--pid SERVER]
//
// Ends after N requests where --ios is given, else after S seconds. --rate N sends one request at a
// time, N a second or as many as come back.
//
// Prints one JSON object: iops, mib_s, latency percentiles in µs, and with --pid the server's CPU
// time per request (all its threads, /proc/PID/task/*/schedstat) and this client's own. Latencies
// are those since SIGUSR1, if that came; then those until then are told, too ("before_us").
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "backend/nbd/protocol.h"
#include "base/fd.h"

namespace vbdkit {
namespace {

using Clock = std::chrono::steady_clock;
using nbd::Command;

struct Options {
  std::string socket;
  std::string export_name;
  std::string rw = "randread";
  uint32_t block = 4096;  // bytes
  unsigned depth = 32;
  double seconds = 3;
  uint64_t ios = 0;   // 0: by time
  uint64_t rate = 0;  // a second; 0: no limit
  int pid = 0;

  bool random() const { return rw.starts_with("rand"); }
  bool writes() const { return rw.ends_with("write"); }
};

volatile std::sig_atomic_t mark_wanted = 0;

void want_mark(int) { mark_wanted = 1; }

[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "nbdload: %s\n", what.c_str());
  std::exit(1);
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i];
    const std::string value = argv[i + 1];
    if (key == "--socket")
      o.socket = value;
    else if (key == "--export")
      o.export_name = value;
    else if (key == "--rw")
      o.rw = value;
    else if (key == "--bs")
      o.block = static_cast<uint32_t>(std::stoul(value));
    else if (key == "--qd")
      o.depth = static_cast<unsigned>(std::stoul(value));
    else if (key == "--seconds")
      o.seconds = std::stod(value);
    else if (key == "--ios")
      o.ios = std::stoull(value);
    else if (key == "--rate")
      o.rate = std::stoull(value);
    else if (key == "--pid")
      o.pid = std::stoi(value);
    else
      die("unknown option " + key);
  }
  if (o.rate != 0) o.depth = 1;
  if (o.socket.empty() || argc % 2 == 0 || o.block == 0 || o.depth == 0)
    die("usage: nbdload --socket PATH [--rw …] [--bs …] [--qd …] [--seconds …] [--ios …] [--rate "
        "…] "
        "[--pid …]");
  return o;
}

// Logarithmic buckets, 16 to an octave, of nanoseconds.
class Histogram {
 public:
  void add(uint64_t ns) {
    ++counts_[index(ns)];
    ++total_;
    max_ = std::max(max_, ns);
  }
  double percentile_us(double p) const {
    auto left = static_cast<uint64_t>(p / 100 * static_cast<double>(total_));
    for (size_t i = 0; i < counts_.size(); ++i) {
      if (left < counts_[i]) return static_cast<double>(lower(i)) / 1000;
      left -= counts_[i];
    }
    return static_cast<double>(max_) / 1000;
  }
  double max_us() const { return static_cast<double>(max_) / 1000; }
  std::string to_json() const {
    char text[160];
    std::snprintf(text, sizeof text, "{\"p50\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"max\":%.1f}",
                  percentile_us(50), percentile_us(99), percentile_us(99.9), max_us());
    return text;
  }

 private:
  static size_t index(uint64_t ns) {
    if (ns < 16) return ns;
    const auto octave = static_cast<unsigned>(std::bit_width(ns)) - 5;
    return (octave + 1) * 16 + ((ns >> octave) & 15);
  }
  static uint64_t lower(size_t i) {
    if (i < 32) return i;
    return (uint64_t{16} + i % 16) << (i / 16 - 1);
  }

  std::array<uint64_t, 1024> counts_{};
  uint64_t total_ = 0;
  uint64_t max_ = 0;
};

// Nanoseconds on a CPU, over all threads.
uint64_t cpu_of_process(int pid) {
  uint64_t total = 0;
  const std::string tasks = "/proc/" + std::to_string(pid) + "/task";
  for (const auto& task : std::filesystem::directory_iterator(tasks)) {
    std::ifstream in(task.path() / "schedstat");
    uint64_t ns = 0;
    if (in >> ns) total += ns;
  }
  return total;
}

uint64_t own_cpu() {
  rusage u{};
  getrusage(RUSAGE_SELF, &u);
  const auto us =
      (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1'000'000 + u.ru_utime.tv_usec + u.ru_stime.tv_usec;
  return static_cast<uint64_t>(us) * 1000;
}

class Client {
 public:
  explicit Client(const Options& options)
      : o_(options), slots_(o_.depth), payload_(o_.block, 0xa5) {
    rx_.resize(std::max<size_t>(size_t{256} << 10, size_t{2} * o_.block));
    connect();
    negotiate();
    if (size_ < o_.block) die("the export is smaller than a block");
  }

  void run();

 private:
  struct Slot {
    Clock::time_point sent;
  };

  void connect();
  void negotiate();
  void read_all(void* to, size_t n);
  void send_iov(std::vector<iovec>& iov);
  void issue(unsigned slot);
  void flush_requests();
  size_t take_replies(size_t have);
  uint64_t next_offset();

  Options o_;
  Fd fd_;
  uint64_t size_ = 0;
  std::vector<Slot> slots_;
  std::vector<uint8_t> payload_;
  std::vector<uint8_t> rx_;
  std::vector<unsigned> queued_;
  std::vector<std::array<uint8_t, nbd::kRequestSize>> headers_;
  size_t skip_ = 0;  // bytes of read data still to come
  uint64_t random_ = 0x9e3779b97f4a7c15;
  uint64_t sequential_ = 0;
  uint64_t issued_ = 0;
  uint64_t done_ = 0;
  unsigned in_flight_ = 0;
  bool stop_ = false;
  Histogram latency_;
  std::optional<Histogram> before_;
};

void Client::connect() {
  fd_ = Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (o_.socket.size() >= sizeof address.sun_path) die("socket path too long");
  std::memcpy(address.sun_path, o_.socket.c_str(), o_.socket.size() + 1);
  if (::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    die("connect " + o_.socket + ": " + strerror(errno));
}

void Client::read_all(void* to, size_t n) {
  if (::recv(fd_.get(), to, n, MSG_WAITALL) != static_cast<ssize_t>(n)) die("connection lost");
}

// The oldest way in is the shortest: NBD_OPT_EXPORT_NAME, which leaves replies simple.
void Client::negotiate() {
  uint8_t greeting[18];
  read_all(greeting, sizeof greeting);
  if (nbd::load_be<uint64_t>(greeting) != nbd::kMagic) die("not an NBD server");
  std::vector<uint8_t> out(20 + o_.export_name.size());
  uint8_t* p = nbd::store_be(out.data(), nbd::kClientFixedNewstyle | nbd::kClientNoZeroes);
  p = nbd::store_be(p, nbd::kOptionMagic);
  p = nbd::store_be(p, static_cast<uint32_t>(nbd::Option::kExportName));
  p = nbd::store_be(p, static_cast<uint32_t>(o_.export_name.size()));
  std::memcpy(p, o_.export_name.data(), o_.export_name.size());
  std::vector<iovec> iov{{out.data(), out.size()}};
  send_iov(iov);
  uint8_t answer[10];
  read_all(answer, sizeof answer);
  size_ = nbd::load_be<uint64_t>(answer);
}

void Client::send_iov(std::vector<iovec>& iov) {
  size_t first = 0;
  while (first < iov.size()) {
    msghdr msg{};
    msg.msg_iov = iov.data() + first;
    msg.msg_iovlen = std::min<size_t>(iov.size() - first, 1024);
    const ssize_t r = ::sendmsg(fd_.get(), &msg, MSG_NOSIGNAL);
    if (r < 0) die(std::string("send: ") + strerror(errno));
    auto n = static_cast<size_t>(r);
    while (first < iov.size() && n >= iov[first].iov_len) n -= iov[first++].iov_len;
    if (n > 0) {
      iov[first].iov_base = static_cast<uint8_t*>(iov[first].iov_base) + n;
      iov[first].iov_len -= n;
    }
  }
}

uint64_t Client::next_offset() {
  const uint64_t blocks = size_ / o_.block;
  if (!o_.random()) return sequential_++ % blocks * o_.block;
  random_ ^= random_ << 13;
  random_ ^= random_ >> 7;
  random_ ^= random_ << 17;
  return random_ % blocks * o_.block;
}

void Client::issue(unsigned slot) {
  if (o_.ios != 0 && issued_ >= o_.ios) return;
  queued_.push_back(slot);
  ++issued_;
}

void Client::flush_requests() {
  if (queued_.empty()) return;
  headers_.resize(queued_.size());
  std::vector<iovec> iov;
  iov.reserve(queued_.size() * 2);
  const auto now = Clock::now();
  for (size_t i = 0; i < queued_.size(); ++i) {
    nbd::RequestHeader h;
    h.command = static_cast<uint16_t>(o_.writes() ? Command::kWrite : Command::kRead);
    h.cookie = queued_[i];
    h.offset = next_offset();
    h.length = o_.block;
    nbd::encode_request(headers_[i], h);
    iov.push_back({headers_[i].data(), headers_[i].size()});
    if (o_.writes()) iov.push_back({payload_.data(), payload_.size()});
    slots_[queued_[i]].sent = now;
    ++in_flight_;
  }
  queued_.clear();
  send_iov(iov);
}

// Handles the complete replies in the first `have` bytes; returns how many bytes they were.
size_t Client::take_replies(size_t have) {
  const auto now = Clock::now();
  size_t at = std::min(skip_, have);
  skip_ -= at;
  while (skip_ == 0 && have - at >= nbd::kSimpleReplySize) {
    const uint8_t* p = rx_.data() + at;
    if (nbd::load_be<uint32_t>(p) != nbd::kSimpleReplyMagic) die("bad reply magic");
    if (const auto error = nbd::load_be<uint32_t>(p + 4); error != 0)
      die("the server answered with error " + std::to_string(error));
    const auto slot = static_cast<unsigned>(nbd::load_be<uint64_t>(p + 8));
    if (slot >= slots_.size()) die("bad cookie");
    at += nbd::kSimpleReplySize;
    if (!o_.writes()) {
      const size_t here = std::min<size_t>(o_.block, have - at);
      at += here;
      skip_ = o_.block - here;
    }
    if (mark_wanted != 0) {
      mark_wanted = 0;
      before_ = std::exchange(latency_, {});
    }
    latency_.add(static_cast<uint64_t>((now - slots_[slot].sent).count()));
    ++done_;
    --in_flight_;
    if (!stop_) issue(slot);
  }
  return at;
}

void Client::run() {
  const uint64_t server_cpu = o_.pid != 0 ? cpu_of_process(o_.pid) : 0;
  const uint64_t client_cpu = own_cpu();
  const auto start = Clock::now();
  const auto end = start + std::chrono::duration_cast<Clock::duration>(
                               std::chrono::duration<double>(o_.seconds));
  for (unsigned i = 0; i < o_.depth; ++i) issue(i);
  size_t kept = 0;
  uint64_t receives = 0;
  auto next = start;
  while (true) {
    stop_ = o_.ios != 0 ? issued_ >= o_.ios : Clock::now() >= end;
    if (stop_ && o_.ios == 0) queued_.clear();
    if (o_.rate != 0 && !queued_.empty()) {
      next = std::max(Clock::now(), next + std::chrono::nanoseconds(1'000'000'000 / o_.rate));
      std::this_thread::sleep_until(next);
    }
    flush_requests();
    if (in_flight_ == 0 && skip_ == 0) break;
    const ssize_t r = ::recv(fd_.get(), rx_.data() + kept, rx_.size() - kept, 0);
    if (r <= 0) die("connection lost");
    ++receives;
    const size_t have = kept + static_cast<size_t>(r);
    const size_t used = take_replies(have);
    kept = have - used;
    std::memmove(rx_.data(), rx_.data() + used, kept);
  }
  const double s = std::chrono::duration<double>(Clock::now() - start).count();
  const auto n = static_cast<double>(done_);
  std::printf(
      "{\"rw\":\"%s\",\"bs\":%u,\"qd\":%u,\"ios\":%llu,\"iops\":%.0f,\"mib_s\":%.1f,"
      "\"lat_us\":%s,\"per_receive\":%.1f,"
      "\"client_cpu_us_per_io\":%.2f",
      o_.rw.c_str(), o_.block, o_.depth, static_cast<unsigned long long>(done_), n / s,
      n * o_.block / s / (1 << 20), latency_.to_json().c_str(), n / static_cast<double>(receives),
      static_cast<double>(own_cpu() - client_cpu) / 1000 / n);
  if (before_) std::printf(",\"before_us\":%s", before_->to_json().c_str());
  if (o_.pid != 0)
    std::printf(",\"cpu_us_per_io\":%.2f",
                static_cast<double>(cpu_of_process(o_.pid) - server_cpu) / 1000 / n);
  std::puts("}");
}

}  // namespace
}  // namespace vbdkit

int main(int argc, char** argv) {
  struct sigaction action {};
  action.sa_handler = vbdkit::want_mark;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR1, &action, nullptr);
  vbdkit::Client(vbdkit::parse(argc, argv)).run();
  return 0;
}
