// SPDX-License-Identifier: LGPL-2.1-or-later
//
// simfront: a guest with one disk, as a program. It joins the World it was started in, or makes
// one; creates a guest, attaches the disk, connects, loads it, and prints what it saw as one JSON
// object.
#include <getopt.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "tests/sim/load.h"
#include "tests/sim/verified_disk.h"
#include "tests/sim/world.h"

namespace vbdkit::sim {
namespace {

constexpr const char* kUsage =
    "usage: simfront [options]\n"
    "  --backend TYPE     vbd, vbd3 or qdisk (starts QEMU by itself); default vbd\n"
    "  --target SPEC      what libxl would write as the disk's target\n"
    "  --spawn COMMAND    run this (sh -c) as the backend; %d is the guest's domid, %b the "
    "absolute\n"
    "                     path of the backend directory\n"
    "  --op OP            randread, randwrite, read, write; default randread\n"
    "  --bs BYTES         block size; default 4096\n"
    "  --qd N             requests in flight per queue; default 32\n"
    "  --queues N         rings, each with a thread; default 1\n"
    "  --ring-order N     2^N pages per ring; default 0\n"
    "  --indirect N       up to N segments per request\n"
    "  --persistent       offer persistent grants (data is then copied, as blkfront does)\n"
    "  --abi ABI          x86_64 or x86_32\n"
    "  --seconds N        duration; default 2\n"
    "  --ios N            end after N requests per queue instead\n"
    "  --warmup N         seconds of load before what is measured; default 0.2\n"
    "  --idle N           seconds without a request, before the backend's memory is looked at; "
    "default 0\n"
    "  --area BYTES       only the first BYTES of the disk\n"
    "  --verify           check every byte of a random mix instead of measuring (writes!)\n"
    "  --spin             poll for responses; by default sleep on events, as a guest does\n"
    "  --backend-pid PID  whose CPU time to report; default: the process that bound the ring's "
    "port\n";

struct Arguments {
  DiskConfig disk;
  std::string spawn;
  FrontendOptions frontend;
  LoadOptions load;
  std::string op = "randread";
  double warmup = 0.2;
  double idle = 0;
  bool verify = false;
  pid_t backend_pid = 0;
};

Result<Arguments> parse(int argc, char** argv) {
  enum {
    kBackend = 1,
    kTarget,
    kSpawn,
    kOp,
    kBs,
    kQd,
    kQueues,
    kOrder,
    kIndirect,
    kPersistent,
    kAbi,
    kSeconds,
    kIos,
    kWarmup,
    kIdle,
    kArea,
    kVerify,
    kSpin,
    kBackendPid
  };
  static const option kOptions[] = {{"backend", 1, nullptr, kBackend},
                                    {"target", 1, nullptr, kTarget},
                                    {"spawn", 1, nullptr, kSpawn},
                                    {"op", 1, nullptr, kOp},
                                    {"bs", 1, nullptr, kBs},
                                    {"qd", 1, nullptr, kQd},
                                    {"queues", 1, nullptr, kQueues},
                                    {"ring-order", 1, nullptr, kOrder},
                                    {"indirect", 1, nullptr, kIndirect},
                                    {"persistent", 0, nullptr, kPersistent},
                                    {"abi", 1, nullptr, kAbi},
                                    {"seconds", 1, nullptr, kSeconds},
                                    {"ios", 1, nullptr, kIos},
                                    {"warmup", 1, nullptr, kWarmup},
                                    {"idle", 1, nullptr, kIdle},
                                    {"area", 1, nullptr, kArea},
                                    {"verify", 0, nullptr, kVerify},
                                    {"spin", 0, nullptr, kSpin},
                                    {"backend-pid", 1, nullptr, kBackendPid},
                                    {nullptr, 0, nullptr, 0}};
  static const std::map<std::string, BackendType> kBackends{
      {"vbd", BackendType::kVbd}, {"vbd3", BackendType::kVbd3}, {"qdisk", BackendType::kQdisk}};
  static const std::map<std::string, std::pair<uint8_t, bool>> kOps{
      {"randread", {BLKIF_OP_READ, true}},
      {"randwrite", {BLKIF_OP_WRITE, true}},
      {"read", {BLKIF_OP_READ, false}},
      {"write", {BLKIF_OP_WRITE, false}}};
  Arguments a;
  const auto u32 = [] { return static_cast<unsigned>(std::strtoul(optarg, nullptr, 0)); };
  for (int c; (c = ::getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    switch (c) {
      case kBackend:
        if (!kBackends.contains(optarg)) return Error(ErrorKind::kInvalid, kUsage);
        a.disk.backend = kBackends.at(optarg);
        break;
      case kTarget:
        a.disk.target = optarg;
        break;
      case kSpawn:
        a.spawn = optarg;
        break;
      case kOp:
        if (!kOps.contains(optarg)) return Error(ErrorKind::kInvalid, kUsage);
        a.op = optarg;
        std::tie(a.load.operation, a.load.random) = kOps.at(optarg);
        break;
      case kBs:
        a.load.block_bytes = u32();
        break;
      case kQd:
        a.load.depth = u32();
        break;
      case kQueues:
        a.frontend.queues = u32();
        break;
      case kOrder:
        a.frontend.ring_order = u32();
        break;
      case kIndirect:
        a.frontend.indirect_segments = u32();
        break;
      case kPersistent:
        a.frontend.persistent = true;
        break;
      case kAbi:
        a.frontend.abi = std::string(optarg) == "x86_32" ? Abi::kX86_32 : Abi::kX86_64;
        break;
      case kSeconds:
        a.load.seconds = std::strtod(optarg, nullptr);
        break;
      case kIos:
        a.load.ios = std::strtoull(optarg, nullptr, 0);
        break;
      case kWarmup:
        a.warmup = std::strtod(optarg, nullptr);
        break;
      case kIdle:
        a.idle = std::strtod(optarg, nullptr);
        break;
      case kArea:
        a.load.area_bytes = std::strtoull(optarg, nullptr, 0);
        break;
      case kVerify:
        a.verify = true;
        break;
      case kSpin:
        a.load.spin = true;
        break;
      case kBackendPid:
        a.backend_pid = static_cast<pid_t>(u32());
        break;
      default:
        return Error(ErrorKind::kInvalid, kUsage);
    }
  }
  if (optind != argc || a.disk.target.empty()) return Error(ErrorKind::kInvalid, kUsage);
  return a;
}

std::string expand(std::string command, const Disk& disk) {
  const std::pair<std::string, std::string> replacements[] = {{"%d", std::to_string(disk.domid)},
                                                              {"%b", disk.backend_path}};
  for (const auto& [mark, text] : replacements)
    for (size_t at; (at = command.find(mark)) != std::string::npos;)
      command.replace(at, mark.size(), text);
  return command;
}

double per(uint64_t amount, uint64_t ios) {
  return ios == 0 ? 0 : static_cast<double>(amount) / static_cast<double>(ios);
}

nlohmann::json verified(Frontend& front, const Arguments& a, bool& good) {
  const uint64_t area = a.load.area_bytes == 0 ? front.features().sectors : a.load.area_bytes / 512;
  VerifiedDisk model(std::min(area, front.features().sectors), VerifiedDisk::Start::kUnknown);
  const auto deadline = in(std::chrono::minutes(5));
  auto report = model.run(
      front,
      {.requests = a.load.ios == 0 ? 10000 : a.load.ios, .depth = a.load.depth * a.frontend.queues},
      deadline);
  if (report) {
    // What the last write of each sector left is still to be seen.
    auto rest = model.check(front, deadline);
    if (rest) {
      report->sectors_checked += rest->sectors_checked;
      report->problems.insert(report->problems.end(), rest->problems.begin(), rest->problems.end());
    } else {
      report = std::move(rest);
    }
  }
  if (!report) {
    good = false;
    return {{"problems", {report.error().message()}}};
  }
  good = report->problems.empty();
  return {{"reads", report->reads},
          {"writes", report->writes},
          {"flushes", report->flushes},
          {"sectors_checked", report->sectors_checked},
          {"problems", report->problems}};
}

Result<nlohmann::json> measured(World& world, Frontend& front, const Arguments& a, pid_t backend) {
  LoadOptions load = a.load;
  load.copy_data = front.persistent();
  if (a.warmup > 0) {
    LoadOptions warm = load;
    warm.seconds = a.warmup;
    warm.ios = 0;
    VBDKIT_ASSIGN([[maybe_unused]] auto ignored, run_load(front, warm));
  }
  const ProcessUse before = world.use_of(backend).value_or(ProcessUse{});
  const uint64_t backend_cpu = cpu_nanoseconds(backend);
  const uint64_t own_cpu = cpu_nanoseconds(::getpid());
  VBDKIT_ASSIGN(const LoadReport r, run_load(front, load));
  const uint64_t backend_used = cpu_nanoseconds(backend) - backend_cpu;
  const uint64_t own_used = cpu_nanoseconds(::getpid()) - own_cpu;
  const ProcessUse after = world.use_of(backend).value_or(ProcessUse{});
  const auto us = [](uint64_t ns) { return static_cast<double>(ns) / 1000; };
  const double iops = static_cast<double>(r.ios) / r.seconds;
  return nlohmann::json{
      {"ios", r.ios},
      {"seconds", r.seconds},
      {"iops", iops},
      {"mib_s", iops * load.block_bytes / (1 << 20)},
      {"errors", r.errors},
      {"violation", r.violation},
      {"lat_us",
       {{"mean", us(r.latency.mean())},
        {"p50", us(r.latency.percentile(0.5))},
        {"p99", us(r.latency.percentile(0.99))},
        {"p99.9", us(r.latency.percentile(0.999))},
        {"max", us(r.latency.max())}}},
      {"cpu_us_per_io", us(backend_used) / static_cast<double>(r.ios)},
      {"frontend_cpu_us_per_io", us(own_used) / static_cast<double>(r.ios)},
      {"frontend_notifies_per_io", per(r.notifies_sent, r.ios)},
      {"frontend_events_per_io", per(r.events_received, r.ios)},
      {"per_io",
       {{"xen_syscalls", per(after.xen_syscalls() - before.xen_syscalls(), r.ios)},
        {"maps", per(after.maps - before.maps, r.ios)},
        {"copies", per(after.copies - before.copies, r.ios)},
        {"copy_calls", per(after.copy_calls - before.copy_calls, r.ios)},
        {"notifies", per(after.notifies - before.notifies, r.ios)},
        {"unmasks", per(after.unmasks - before.unmasks, r.ios)}}}};
}

Result<int> run(const Arguments& a) {
  VBDKIT_ASSIGN(auto world, std::getenv(kSocketEnv) == nullptr ? World::start() : World::join());
  VBDKIT_ASSIGN(Guest* const guest, world->create_guest());
  VBDKIT_ASSIGN(const Disk disk, world->toolstack().attach(guest->domid(), a.disk));
  const auto begin = std::chrono::steady_clock::now();  // the device's nodes are there
  if (a.disk.backend == BackendType::kQdisk) {
    VBDKIT_ASSIGN([[maybe_unused]] auto* qemu, world->launch_qdisk(*guest));
  } else if (!a.spawn.empty()) {
    VBDKIT_ASSIGN([[maybe_unused]] auto* backend,
                  world->launch("backend", {"sh", "-c", "exec " + expand(a.spawn, disk)}));
  }
  FrontendOptions options = a.frontend;
  options.padding_zero = a.disk.backend != BackendType::kQdisk;
  VBDKIT_ASSIGN(auto front, Frontend::create(*guest, disk.devid, options));
  auto connected = front->connect(in(std::chrono::seconds(15)));
  if (!connected) return std::move(connected).error().context(world->logs());
  const std::chrono::duration<double, std::milli> attach = std::chrono::steady_clock::now() - begin;
  pid_t backend = a.backend_pid;
  if (backend == 0) {
    VBDKIT_ASSIGN(backend, world->process_at(front->queue().port()));
  }
  std::this_thread::sleep_for(std::chrono::duration<double>(a.idle));
  const MemoryUse idle = memory_use(backend);
  nlohmann::json out{{"op", a.op},
                     {"bs", a.load.block_bytes},
                     {"qd", a.load.depth},
                     {"queues", front->queue_count()},
                     {"ring_order", a.frontend.ring_order},
                     {"max_segments", front->max_segments()},
                     {"persistent", front->persistent()},
                     {"attach_ms", attach.count()},
                     {"backend_pid", backend},
                     {"idle_rss_kib", idle.rss_kib},
                     {"idle_pss_kib", idle.pss_kib},
                     {"idle_own_pss_kib", idle.own_pss_kib}};
  bool good = true;
  if (a.verify) {
    out.update(verified(*front, a, good));
  } else {
    VBDKIT_ASSIGN(const nlohmann::json result, measured(*world, *front, a, backend));
    good = result["errors"] == 0 && result["violation"] == "";
    out.update(result);
  }
  std::cout << out.dump() << std::endl;
  auto closed = front->close(in(std::chrono::seconds(10)));
  front.reset();
  VBDKIT_TRY(world->destroy_guest(*guest, in(std::chrono::seconds(10))));
  VBDKIT_TRY(closed);
  return good ? 0 : 1;
}

}  // namespace
}  // namespace vbdkit::sim

int main(int argc, char** argv) {
  auto arguments = vbdkit::sim::parse(argc, argv);
  auto code = arguments ? vbdkit::sim::run(*arguments) : vbdkit::Result<int>(arguments.error());
  if (code) return *code;
  std::fprintf(stderr, "simfront: %s\n", code.error().message().c_str());
  return 1;
}
