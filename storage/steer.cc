// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The commands that are a word to a running instance: pause, resume, drain, refresh, grow,
// throttle.
#include <cstdio>

#include "drivers/options.h"
#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/instance_argument.h"
#include "storage/table.h"
#include "storage/terminal.h"

namespace vbdkit::storage {

namespace {

using control::JsonWriter;
using std::chrono::milliseconds;

// Runs `act` on the instance that the operand INSTANCE names.
int with_instance(
    Syntax& syntax, const std::vector<std::string>& args, const Logger& log,
    const std::function<Result<int>(const po::variables_map&, const InstanceRecord&)>& act) {
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log, [&](const po::variables_map& vm) -> Result<int> {
    VBDKIT_ASSIGN(const auto instance,
                  find_instance(registry_of(vm), text_of(vm, "INSTANCE"), log));
    return act(vm, instance);
  });
}

Result<int> said(const Result<control::Json>& answer) {
  if (!answer) return answer.error();
  return kExitOk;
}

std::string pause_arguments(milliseconds timeout) {
  JsonWriter w;
  w.begin_object().field("timeout-ms", static_cast<uint64_t>(timeout.count())).end_object();
  return w.take();
}

Result<milliseconds> seconds_of(const po::variables_map& vm, const char* name) {
  const double seconds = vm[name].as<double>();
  if (!(seconds >= 0.001 && seconds <= 3600))
    return usage_error(std::string("--") + name + ": from 0.001 to 3600 seconds");
  return milliseconds(static_cast<int64_t>(seconds * 1000));
}

auto seconds_option(double fallback, const char* shown) {
  return po::value<double>()->value_name("SECONDS")->default_value(fallback, shown);
}

struct LimitOption {
  const char* option;
  const char* argument;  // QEMU's name, for query-block and block_set_io_throttle
  const char* burst;
  bool bytes;
};
constexpr LimitOption kLimits[] = {{"iops", "iops", "iops_max", false},
                                   {"iops-read", "iops_rd", "iops_rd_max", false},
                                   {"iops-write", "iops_wr", "iops_wr_max", false},
                                   {"bps", "bps", "bps_max", true},
                                   {"bps-read", "bps_rd", "bps_rd_max", true},
                                   {"bps-write", "bps_wr", "bps_wr_max", true}};

// "2000", "10M", with a burst after a slash: "10M/50M".
Result<void> write_limit(JsonWriter& w, const LimitOption& limit, const std::string& text) {
  const size_t slash = text.find('/');
  const auto number = [&](const std::string& part) -> Result<uint64_t> {
    auto parsed = drivers::parse_size(part);
    if (!parsed)
      return usage_error(std::string("--") + limit.option + ": " + parsed.error().message());
    return *parsed;
  };
  VBDKIT_ASSIGN(const uint64_t rate, number(text.substr(0, slash)));
  w.field(limit.argument, rate);
  if (slash == text.npos) return {};
  VBDKIT_ASSIGN(const uint64_t burst, number(text.substr(slash + 1)));
  w.field(limit.burst, burst);
  return {};
}

Result<int> show_limits(const InstanceRecord& instance, bool json) {
  VBDKIT_ASSIGN(const auto block, ask(instance, "query-block"));
  const auto inserted = block.at(0).member("inserted");
  Json all = Json::object();
  Table table({{"LIMIT"}, {"PER SECOND", Table::Align::kRight}});
  for (const LimitOption& limit : kLimits) {
    const uint64_t rate = inserted.member(limit.argument).number().value_or(0);
    all[limit.option] = rate;
    table.add({limit.option, rate == 0     ? "none"
                             : limit.bytes ? human_size(rate)
                                           : std::to_string(rate)});
  }
  if (json)
    print_json(all);
  else
    std::fputs(table.text().c_str(), stdout);
  return kExitOk;
}

Result<int> set_limits(const InstanceRecord& instance, const po::variables_map& vm) {
  size_t given = 0;
  JsonWriter w;
  w.begin_object().field("device", "disk");
  for (const LimitOption& limit : kLimits) {
    // QEMU's command names all limits.
    if (vm.count(limit.option) == 0) {
      w.field(limit.argument, uint64_t{0});
      continue;
    }
    ++given;
    VBDKIT_TRY(write_limit(w, limit, text_of(vm, limit.option)));
  }
  w.end_object();
  const bool off = vm.count("off") != 0;
  if (off && given > 0) return usage_error("--off takes all limits away");
  if (!off && given == 0) return show_limits(instance, vm.count("json") != 0);
  return said(ask(instance, "block_set_io_throttle", w.take()));
}

}  // namespace

int pause(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("pause [OPTION...] INSTANCE", {"INSTANCE"});
  syntax.options.add_options()("timeout,t", seconds_option(30, "30"),
                               "after which the disk resumes by itself");
  return with_instance(syntax, args, log, [](const auto& vm, const auto& instance) -> Result<int> {
    VBDKIT_ASSIGN(const milliseconds timeout, seconds_of(vm, "timeout"));
    return said(ask(instance, "x-vbdkit-pause", pause_arguments(timeout), timeout));
  });
}

int resume(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("resume [OPTION...] INSTANCE", {"INSTANCE"});
  return with_instance(syntax, args, log, [](const auto&, const auto& instance) {
    return said(ask(instance, "x-vbdkit-resume"));
  });
}

int drain(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("drain [OPTION...] INSTANCE", {"INSTANCE"});
  syntax.options.add_options()("timeout,t", seconds_option(30, "30"), "how long to wait");
  return with_instance(syntax, args, log, [](const auto& vm, const auto& instance) -> Result<int> {
    VBDKIT_ASSIGN(const milliseconds timeout, seconds_of(vm, "timeout"));
    const auto paused = ask(instance, "x-vbdkit-pause", pause_arguments(timeout), timeout);
    // Also where that took too long: the pause is still being waited for.
    const auto resumed = ask(instance, "x-vbdkit-resume");
    return said(paused ? resumed : paused);
  });
}

int refresh(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("refresh [OPTION...] INSTANCE", {"INSTANCE"});
  return with_instance(syntax, args, log, [](const auto&, const auto& instance) {
    return said(ask(instance, "x-vbdkit-refresh"));
  });
}

int grow(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("grow [OPTION...] INSTANCE SIZE|+SIZE", {"INSTANCE", "SIZE"});
  return with_instance(syntax, args, log, [](const auto& vm, const auto& instance) -> Result<int> {
    VBDKIT_ASSIGN(const Bytes size, parse_size_argument(text_of(vm, "SIZE"), Bytes{instance.size}));
    JsonWriter w;
    w.begin_object().field("device", "disk").field("size", size.v).end_object();
    return said(ask(instance, "block_resize", w.take()));
  });
}

int throttle(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("throttle [OPTION...] INSTANCE", {"INSTANCE"});
  const auto limit = [] { return po::value<std::string>()->value_name("N[/BURST]"); };
  syntax.options.add_options()                            //
      ("iops", limit(), "requests per second")            //
      ("iops-read", limit(), "reads alone")               //
      ("iops-write", limit(), "writes alone")             //
      ("bps", limit(), "bytes per second: 10M, 10M/50M")  //
      ("bps-read", limit(), "reads alone")                //
      ("bps-write", limit(), "writes alone")              //
      ("off", "no limits")                                //
      ("json", "for programs, where limits are shown");
  return with_instance(syntax, args, log, [](const auto& vm, const auto& instance) {
    return set_limits(instance, vm);
  });
}

}  // namespace vbdkit::storage
