// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit top: what the running disks do, as it happens; like xentop for disks.
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <optional>

#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/instance_argument.h"
#include "storage/stats.h"
#include "storage/table.h"

namespace vbdkit::storage {

namespace {

using Clock = std::chrono::steady_clock;
using Samples = std::map<std::string, StatsSource::Sample>;

struct Row {
  const InstanceRecord* instance = nullptr;
  IoRates rates;
};

enum class Order { kRequests, kBytes, kLatency };

double weight(const Row& row, Order order) {
  const IoRates& r = row.rates;
  switch (order) {
    case Order::kRequests:
      return r.reads + r.writes;
    case Order::kBytes:
      return r.bytes_read + r.bytes_written;
    case Order::kLatency:
      return std::max(r.read_ms, r.write_ms);
  }
  return 0;
}

std::string fixed(double value, int digits) {
  std::array<char, 64> text;
  std::snprintf(text.data(), text.size(), "%.*f", digits, value);
  return text.data();
}

std::string rate(double bytes) { return human_size(static_cast<uint64_t>(std::llround(bytes))); }

std::vector<Row> rows_of(const std::vector<InstanceRecord>& instances, const Samples& before,
                         const Samples& after, Order order) {
  std::vector<Row> rows;
  for (const InstanceRecord& instance : instances) {
    const auto now = after.find(instance.uuid);
    if (now == after.end()) continue;
    Row row{&instance, {}};
    if (const auto then = before.find(instance.uuid); then != before.end()) {
      const std::chrono::duration<double> passed = now->second.when - then->second.when;
      row.rates = IoRates::between(then->second.counters, now->second.counters, passed.count());
    }
    rows.push_back(row);
  }
  std::stable_sort(rows.begin(), rows.end(), [order](const Row& a, const Row& b) {
    return weight(a, order) > weight(b, order);
  });
  return rows;
}

std::string draw(const std::vector<Row>& rows) {
  using enum Table::Align;
  Table table({{"UUID"},
               {"STATE"},
               {"DISK OF"},
               {"READS/s", kRight},
               {"WRITES/s", kRight},
               {"READ/s", kRight},
               {"WRITTEN/s", kRight},
               {"ms/READ", kRight},
               {"ms/WRITE", kRight},
               {"IMAGE"}});
  for (const Row& row : rows) {
    const IoRates& r = row.rates;
    table.add({row.instance->uuid.substr(0, 8), row.instance->state, users_of(*row.instance),
               fixed(r.reads, 0), fixed(r.writes, 0), rate(r.bytes_read), rate(r.bytes_written),
               fixed(r.read_ms, 2), fixed(r.write_ms, 2), row.instance->spec});
  }
  return table.text();
}

void print_rows_json(const std::vector<Row>& rows, const Samples& samples) {
  Json all = Json::array();
  for (const Row& row : rows) {
    all.push_back({{"uuid", row.instance->uuid},
                   {"spec", row.instance->spec},
                   {"state", row.instance->state},
                   {"io", to_json(samples.at(row.instance->uuid).counters)},
                   {"per-second", to_json(row.rates)}});
  }
  // A line for each sample, so that a program can read them as they come.
  std::puts(all.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  std::fflush(stdout);
}

// Another screen, keys without Enter; the terminal is put back when it goes.
class Screen {
 public:
  static std::optional<Screen> open() {
    termios before{};
    if (::isatty(STDOUT_FILENO) == 0 || ::tcgetattr(STDIN_FILENO, &before) != 0)
      return std::nullopt;
    termios raw = before;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO | ISIG);
    if (::tcsetattr(STDIN_FILENO, TCSANOW, &raw) != 0) return std::nullopt;
    return Screen(before);
  }
  Screen(Screen&& o) noexcept : before_(std::exchange(o.before_, std::nullopt)) {}
  Screen& operator=(Screen&&) = delete;
  ~Screen() {
    if (!before_) return;
    std::fputs("\033[?1049l\033[?25h", stdout);
    std::fflush(stdout);
    ::tcsetattr(STDIN_FILENO, TCSANOW, &*before_);
  }

  // As much of the text as there is room for.
  void show(const std::string& text) const {
    winsize size{};
    const bool known = ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0;
    size_t lines = known ? size.ws_row : 24;
    const size_t columns = known ? size.ws_col : 80;
    std::string out = "\033[H";
    for (size_t at = 0; at < text.size() && lines > 0; --lines) {
      const size_t end = std::min(text.find('\n', at), text.size());
      out += text.substr(at, std::min(end - at, columns)) + "\033[K";
      if (lines > 1) out += "\r\n";
      at = end + 1;
    }
    out += "\033[J";
    std::fputs(out.c_str(), stdout);
    std::fflush(stdout);
  }

 private:
  explicit Screen(const termios& before) : before_(before) {
    std::fputs("\033[?1049h\033[?25l", stdout);
  }
  std::optional<termios> before_;
};

// A key, or 0 where none was pressed in that time.
Result<char> wait_for_key(Clock::duration time) {
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(time).count();
  pollfd keys{STDIN_FILENO, POLLIN, 0};
  const int n = ::poll(&keys, 1, static_cast<int>(std::max<int64_t>(0, ms)));
  if (n < 0 && errno != EINTR) return Error::from_errno(errno, "poll");
  char key = 0;
  if (n > 0 && ::read(STDIN_FILENO, &key, 1) <= 0) return 'q';  // the terminal is gone
  constexpr char kInterrupt = 3;                                // Ctrl-C, as a key here
  return key == kInterrupt ? 'q' : key;
}

void pass(Clock::duration time) {
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(time).count();
  ::poll(nullptr, 0, static_cast<int>(std::max<int64_t>(0, ms)));
}

class Top {
 public:
  Top(Registry registry, std::chrono::milliseconds interval, bool json)
      : registry_(std::move(registry)), interval_(interval), json_(json) {}

  // Rates over one interval.
  Result<void> once() {
    VBDKIT_TRY(sample());
    pass(interval_);
    VBDKIT_TRY(sample());
    print(rows());
    return {};
  }

  Result<void> stream() {
    VBDKIT_TRY(sample());
    for (;;) {
      pass(interval_);
      VBDKIT_TRY(sample());
      print(rows());
      if (std::ferror(stdout) != 0) return Error(ErrorKind::kIo, "nobody reads the output");
    }
  }

  Result<void> interact(const Screen& screen) {
    VBDKIT_TRY(sample());
    for (;;) {
      screen.show("vbdkit: " + std::to_string(instances_.size()) +
                  " instances; order by r: requests, b: bytes, l: latency; q: quit\n\n" +
                  draw(rows()));
      for (const auto next = Clock::now() + interval_; Clock::now() < next;) {
        VBDKIT_ASSIGN(const char key, wait_for_key(next - Clock::now()));
        if (key == 'q') return {};
        if (key == 'r') order_ = Order::kRequests;
        if (key == 'b') order_ = Order::kBytes;
        if (key == 'l') order_ = Order::kLatency;
      }
      VBDKIT_TRY(sample());
    }
  }

 private:
  Result<void> sample() {
    VBDKIT_ASSIGN(instances_, registry_.list());
    std::erase_if(instances_, [](const InstanceRecord& i) { return !i.alive; });
    before_ = std::move(now_);
    now_ = source_.sample(instances_);
    return {};
  }
  std::vector<Row> rows() const { return rows_of(instances_, before_, now_, order_); }
  void print(const std::vector<Row>& rows) const {
    if (json_)
      print_rows_json(rows, now_);
    else
      std::fputs(draw(rows).c_str(), stdout);
  }

  const Registry registry_;
  const std::chrono::milliseconds interval_;
  const bool json_;
  Order order_ = Order::kRequests;
  StatsSource source_;
  std::vector<InstanceRecord> instances_;
  Samples before_, now_;
};

Result<int> run(const po::variables_map& vm) {
  const double seconds = vm["interval"].as<double>();
  if (!(seconds >= 0.01 && seconds <= 3600)) return usage_error("--interval: from 0.01 to 3600");
  const bool json = vm.count("json") != 0;
  Top top(registry_of(vm), std::chrono::milliseconds(std::llround(seconds * 1000)), json);
  if (vm.count("once") != 0) {
    VBDKIT_TRY(top.once());
    return kExitOk;
  }
  if (json) {
    VBDKIT_TRY(top.stream());
    return kExitOk;
  }
  const auto screen = Screen::open();
  if (!screen) return usage_error("this is no terminal: --once or --json?");
  VBDKIT_TRY(top.interact(*screen));
  return kExitOk;
}

}  // namespace

int top(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("top [OPTION...]", {});
  syntax.options.add_options()  //
      ("interval,d", po::value<double>()->value_name("SECONDS")->default_value(2, "2"),
       "between two looks")                           //
      ("once", "print one table, over one interval")  //
      ("json", "a line of JSON for each interval");
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log, run);
}

}  // namespace vbdkit::storage
