// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Eight guests write to their disks and verify every byte, six over NBD and two through rings,
// while an admin (three, in fact) snapshots, clones, merges, commits, grows, copies and pauses at
// random, and is killed now and then in the middle of a command. Disks that crash come again with
// all that was flushed.
//
// VBDKIT_LOAD_SECONDS: for how long. VBDKIT_LOAD_SEED: the same choices again. VBDKIT_LOAD_ONLY: of
// what the admin does only this ("snapshot,stream"). VBDKIT_BACKEND: the program that serves the
// disks, for one that was built otherwise.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <regex>
#include <shared_mutex>
#include <thread>

#include "backend/control/qmp_client.h"
#include "storage/registry.h"
#include "tests/sim/nbd_writer.h"
#include "tests/sim/stamped_disk.h"
#include "tests/sim/verified_disk.h"
#include "tests/sim/world_test_base.h"

namespace vbdkit::sim {
namespace {

using namespace std::chrono_literals;
using Random = std::mt19937_64;
namespace fs = std::filesystem;

constexpr uint64_t kSectors = 16 * 2048;
constexpr size_t kNbdDisks = 6;
constexpr size_t kRingDisks = 2;
constexpr unsigned kAdmins = 3;

uint64_t number_from(const char* variable, uint64_t otherwise) {
  const char* const text = std::getenv(variable);
  return text == nullptr ? otherwise : std::stoull(text);
}

// What an admin may be told who asks for something while others do something else.
const std::regex& conflicts() {
  static const std::regex expression(
      "runs on this disk.*; wait for its end or cancel it"
      "|in use by"
      "|is also that of .*, which would change with it"
      "|reads the parent .* through .*, which would change with it"
      "|has .* as its disk"
      "|has just been (changed|resized|given another parent)"
      "|does not stand on"
      "|No such file or directory"
      "|has no parent"
      "|has just been given to another file"
      "|'base' can only be the parent"
      "|is not beneath"
      "|still has .* open"
      "|[Ss]napshot of this disk and others (is under way|was given up)"
      "|disk (could wait|waits for no group, or waits) no longer"
      "|which is not found here \\(it may just have been given another name\\)"
      "|is being merged into .*; that has to be ended first"
      // Of an instance that has just crashed.
      "|instance .* is dead"
      "|QMP: .*(Connection re(set by peer|fused)|Broken pipe|closed)");
  return expression;
}

struct LoadDisk {
  std::string name;
  std::string format;
  std::string path;
  size_t family = 0;
  std::unique_ptr<StampedDisk> model;  // of one that is written over NBD
  // Ends the instance and starts another; not while somebody reads what it has in its pages.
  std::mutex instance;
  std::string uuid;
};

struct Outcome {
  bool ok = false;
  bool killed = false;
  std::string output;
};

class LiveLoad : public WorldTest {
 protected:
  static std::string program(const std::string& name) { return build_dir() + "/../../" + name; }
  static std::string backend() {
    const char* const other = std::getenv("VBDKIT_BACKEND");
    return other != nullptr ? other : program("vbdkit-backend");
  }
  std::string file(const std::string& name) { return world().dir() + "/images/" + name; }
  std::string spec(const LoadDisk& disk) { return disk.format + ":" + disk.path; }

  // vbdkit with these arguments. Where `patience` is given, it is killed after that time.
  Outcome vbdkit(std::vector<std::string> arguments,
                 std::optional<std::chrono::milliseconds> patience = {}) {
    arguments.insert(arguments.begin(), program("vbdkit"));
    const std::string log = world().dir() + "/command" + std::to_string(++commands_) + ".log";
    auto process = must(Process::start(arguments, {.log_path = log}));
    Outcome outcome;
    auto status = process->wait(in(patience ? *patience : std::chrono::milliseconds(5min)));
    if (!status && patience) {
      process->signal(SIGKILL);
      outcome.killed = true;
      status = process->wait(in(1min));
    }
    outcome.output = process->log();
    if (!status) {
      problem("never ended: " + joined(arguments));
    } else if (WIFEXITED(*status)) {
      outcome.ok = WEXITSTATUS(*status) == 0;
      outcome.killed = false;
    } else if (!outcome.killed) {
      problem("died: " + joined(arguments) + ": " + outcome.output);
    }
    fs::remove(log);
    return outcome;
  }
  static std::string joined(const std::vector<std::string>& words) {
    std::string all;
    for (const std::string& word : words) all += (all.empty() ? "" : " ") + word;
    return all;
  }

  void problem(const std::string& what) {
    const std::lock_guard lock(mutex_);
    if (problems_.size() < 20) problems_.push_back(what);
    failed_ = true;
  }
  void succeeded(const std::string& what) {
    const std::lock_guard lock(mutex_);
    ++done_[what].first;
  }
  void refused(const std::string& what, const std::string& why) {
    {
      const std::lock_guard lock(mutex_);
      ++done_[what].second;
    }
    if (!std::regex_search(why, conflicts())) problem(what + " failed: " + why);
  }

  void TearDown() override {
    fronts_.clear();
    if (!runtime_dir_.empty())
      for (const auto& record : must(registry().list()))
        if (record.alive) ::kill(record.pid, SIGKILL);
    WorldTest::TearDown();
  }

  void make_disks();
  void start_nbd(LoadDisk& disk);
  storage::Registry registry() { return storage::Registry(runtime_dir_); }
  Result<storage::InstanceRecord> instance_of(const LoadDisk& disk);
  void write_over_nbd(LoadDisk& disk, uint64_t seed);
  void write_to_rings(uint64_t seed);

  using Act = void (LiveLoad::*)(Random& random);
  struct Choice {
    const char* name;
    unsigned weight;
    Act act;
    bool must = true;  // succeed at least once
  };
  static std::vector<Choice> every_choice();
  static const std::vector<Choice>& choices();
  void admin(uint64_t seed);
  LoadDisk& any(Random& random) { return *disks_[random() % disks_.size()]; }
  LoadDisk& any_nbd(Random& random) { return *disks_[random() % kNbdDisks]; }
  std::string fresh(const std::string& what) { return file(what + std::to_string(++names_)); }
  // Now and then, a time after which a command is killed.
  std::optional<std::chrono::milliseconds> patience(Random& random) {
    if (random() % 4 != 0) return std::nullopt;
    return std::chrono::milliseconds(random() % 80);
  }
  void ended(const std::string& what, const Outcome& outcome) {
    if (outcome.ok)
      succeeded(what);
    else if (outcome.killed)
      succeeded("killed");
    else
      refused(what, outcome.output);
  }

  void snapshot(Random& random);
  void group(Random& random);
  void clone(Random& random);
  void coalesce(Random& random);
  void gc(Random& random);
  void commit(Random& random);
  void stream(Random& random);
  void refresh(Random& random);
  void pause(Random& random);
  void grow(Random& random);
  void backup(Random& random);
  void crash(Random& random);

  void expect_copy(const LoadDisk& disk, const StampedDisk::Since& since, const std::string& copy,
                   const std::string& what);
  std::vector<std::byte> content(const std::string& spec);
  void finish();

  std::string runtime_dir_;
  std::vector<std::unique_ptr<LoadDisk>> disks_;
  std::vector<std::unique_ptr<Frontend>> fronts_;
  std::vector<std::unique_ptr<VerifiedDisk>> ring_models_;
  std::vector<Process*> ring_backends_;
  // Who takes a file away that others may be at, as an admin does who knows that nobody needs it.
  std::shared_mutex files_;
  std::atomic<bool> over_{false};
  std::atomic<bool> writers_over_{false};
  std::atomic<bool> failed_{false};
  std::atomic<unsigned> commands_{0};
  std::atomic<unsigned> names_{0};
  std::atomic<uint64_t> requests_{0};
  std::mutex mutex_;
  std::vector<std::string> problems_;
  std::map<std::string, std::pair<unsigned, unsigned>> done_;  // how often well, and refused
};

std::vector<std::byte> bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::vector<std::byte> content(fs::file_size(path));
  in.read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(content.size()));
  return content;
}

void LiveLoad::make_disks() {
  runtime_dir_ = world().dir() + "/run";
  fs::create_directories(runtime_dir_ + "/instances");
  fs::create_directory(world().dir() + "/images");
  ::setenv("VBDKIT_RUNTIME_DIR", runtime_dir_.c_str(), 1);
  const auto base = StampedDisk::base(kSectors);
  const std::string raw = world().dir() + "/base.raw";
  std::ofstream(raw, std::ios::binary)
      .write(reinterpret_cast<const char*>(base.data()), static_cast<std::streamsize>(base.size()));
  for (const std::string format : {"qcow2", "vhd"})
    ASSERT_TRUE(vbdkit({"convert", "raw:" + raw, format + ":" + file("base." + format)}).ok);
  for (size_t i = 0; i < kNbdDisks + kRingDisks; ++i) {
    auto disk = std::make_unique<LoadDisk>();
    disk->format = i % 2 == 0 ? "qcow2" : "vhd";
    disk->name = (i < kNbdDisks ? "nbd" : "ring") + std::to_string(i);
    disk->path = file(disk->name + "." + disk->format);
    const bool ring = i >= kNbdDisks;
    // Three stand on one base, and one of each kind has none.
    const std::vector<std::string> from =
        ring ? std::vector<std::string>{"--size", std::to_string(kSectors * 512)}
             : std::vector<std::string>{"--parent",
                                        disk->format + ":" + file("base." + disk->format)};
    std::vector<std::string> arguments = {"create"};
    arguments.insert(arguments.end(), from.begin(), from.end());
    arguments.push_back(spec(*disk));
    ASSERT_TRUE(vbdkit(arguments).ok);
    if (!ring) disk->model = std::make_unique<StampedDisk>(kSectors, i + 1);
    disks_.push_back(std::move(disk));
  }
}

void LiveLoad::start_nbd(LoadDisk& disk) {
  // One that was killed, or who is putting the image on another parent, may have it for a moment.
  Outcome started;
  const auto last = in(1min);
  do
    started = vbdkit({"activate", "--backend", backend(), "--log",
                      world().dir() + "/" + disk.name + ".log", spec(disk)});
  while (!started.ok && started.output.find("in use by") != std::string::npos &&
         std::chrono::steady_clock::now() < last);
  if (!started.ok) return problem("activate " + disk.name + ": " + started.output);
  disk.uuid = started.output.substr(0, started.output.find('\n'));
}

Result<storage::InstanceRecord> LiveLoad::instance_of(const LoadDisk& disk) {
  VBDKIT_ASSIGN(auto found, registry().find_image(disk.path, storage::Registry::Where::kLeaf));
  if (found.empty()) return Error(ErrorKind::kNotFound, disk.name + ": No such file or directory");
  return std::move(found.front());
}

void LiveLoad::write_over_nbd(LoadDisk& disk, uint64_t seed) {
  NbdWriter writer(*disk.model, seed);
  const auto connect = [&] {
    return writer.connect(runtime_dir_ + "/instances/" + disk.uuid + "/nbd.sock");
  };
  auto connected = connect();
  while (!writers_over_ && !failed_) {
    const uint64_t before = writer.requests();
    const auto done = connected ? writer.run(200) : std::move(connected);
    requests_ += writer.requests() - before;
    if (!writer.problem().empty()) return problem(disk.name + ": " + writer.problem());
    if (done) continue;
    // It was killed, or should not have ended.
    const std::lock_guard lock(disk.instance);
    const auto record = registry().read(disk.uuid);
    if (record && record->alive) return problem(disk.name + ": " + done.error().message());
    start_nbd(disk);
    if (failed_) return;
    connected = connect();
    if (!connected) continue;
    auto there = writer.read_all();
    if (!there) return problem(disk.name + ": " + there.error().message());
    there->resize(kSectors * 512);
    if (const auto lost = disk.model->recover(*there))
      return problem(disk.name + " after a crash: " + *lost);
    succeeded("recovered");
  }
  if (failed_) return;
  const auto content = writer.read_all();
  if (!content) return problem(disk.name + ": " + content.error().message());
  if (const auto wrong = disk.model->wrong(0, std::span(*content).first(kSectors * 512)))
    problem(disk.name + " as its guest sees it: " + *wrong);
}

void LiveLoad::write_to_rings(uint64_t seed) {
  while (!writers_over_ && !failed_)
    for (size_t i = 0; i < fronts_.size(); ++i) {
      const auto report =
          ring_models_[i]->run(*fronts_[i], {.seed = ++seed, .requests = 150}, in(5min));
      if (!report) return problem("ring: " + report.error().message());
      for (const std::string& wrong : report->problems) problem("ring: " + wrong);
      requests_ += 150;
    }
}

const std::vector<LiveLoad::Choice>& LiveLoad::choices() {
  static const std::vector<Choice> chosen = [] {
    std::vector<Choice> all = every_choice();
    const char* const only = std::getenv("VBDKIT_LOAD_ONLY");
    if (only != nullptr)
      std::erase_if(all, [names = "," + std::string(only) + ","](const Choice& choice) {
        return names.find("," + std::string(choice.name) + ",") == std::string::npos;
      });
    return all;
  }();
  return chosen;
}

std::vector<LiveLoad::Choice> LiveLoad::every_choice() {
  return {
      {"snapshot", 6, &LiveLoad::snapshot},
      {"group", 2, &LiveLoad::group},
      {"clone", 3, &LiveLoad::clone},
      {"coalesce", 9, &LiveLoad::coalesce},
      // It wants all images, of which others have some; finish() is where it must succeed.
      {"gc", 1, &LiveLoad::gc, false},
      {"commit", 4, &LiveLoad::commit},
      {"stream", 3, &LiveLoad::stream},
      {"refresh", 2, &LiveLoad::refresh},
      {"pause", 2, &LiveLoad::pause},
      {"grow", 1, &LiveLoad::grow},
      {"backup", 2, &LiveLoad::backup},
      {"crash", 1, &LiveLoad::crash},
  };
}

void LiveLoad::admin(uint64_t seed) {
  Random random(seed);
  unsigned weights = 0;
  for (const Choice& choice : choices()) weights += choice.weight;
  while (!over_ && !failed_) {
    unsigned at = static_cast<unsigned>(random() % weights);
    for (const Choice& choice : choices()) {
      if (at < choice.weight) {
        (this->*choice.act)(random);
        break;
      }
      at -= choice.weight;
    }
  }
}

void LiveLoad::snapshot(Random& random) {
  const std::shared_lock lock(files_);
  const LoadDisk& disk = any(random);
  ended("snapshot",
        vbdkit({"snapshot", spec(disk), fresh("s") + "." + disk.format}, patience(random)));
}

void LiveLoad::group(Random& random) {
  const std::shared_lock lock(files_);
  const LoadDisk& one = any(random);
  const LoadDisk& other = any(random);
  if (&one == &other) return;
  ended("group", vbdkit({"snapshot", spec(one), fresh("s") + "." + one.format, "--group",
                         spec(other) + "=" + fresh("s") + "." + other.format},
                        patience(random)));
}

std::vector<std::byte> LiveLoad::content(const std::string& spec) {
  const std::string raw = fresh("copy");
  // Who was killed while it merged one of the parents may have that for a moment.
  Outcome read;
  const auto last = in(1min);
  do read = vbdkit({"convert", spec, "raw:" + raw});
  while (!read.ok && read.output.find("in use by") != std::string::npos &&
         std::chrono::steady_clock::now() < last);
  std::vector<std::byte> content;
  if (read.ok)
    content = bytes_of(raw);
  else
    problem("convert " + spec + ": " + read.output);
  fs::remove(raw);
  return content;
}

void LiveLoad::expect_copy(const LoadDisk& disk, const StampedDisk::Since& since,
                           const std::string& copy, const std::string& what) {
  auto bytes = content(copy);
  if (bytes.size() < kSectors * 512) return problem(what + " of " + disk.name + " is too short");
  bytes.resize(kSectors * 512);
  if (const auto wrong = disk.model->wrong_copy(since, bytes))
    problem(what + " of " + disk.name + ": " + *wrong);
}

void LiveLoad::clone(Random& random) {
  LoadDisk& disk = any_nbd(random);
  const std::string copy = fresh("clone") + "." + disk.format;
  {
    const std::shared_lock lock(files_);
    const auto since = disk.model->since();
    const Outcome made = vbdkit(
        {"clone", "--base", fresh("s") + "." + disk.format, spec(disk), disk.format + ":" + copy},
        patience(random));
    ended("clone", made);
    if (made.ok) expect_copy(disk, *since, disk.format + ":" + copy, "a clone");
  }
  const std::unique_lock lock(files_);
  fs::remove(copy);
}

// Any of the images that a snapshot has left.
void LiveLoad::coalesce(Random& random) {
  const std::shared_lock lock(files_);
  std::vector<std::string> images;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(world().dir() + "/images", ignored)) {
    const std::string name = entry.path().filename();
    if (name[0] == 's' && (name.ends_with(".qcow2") || name.ends_with(".vhd")))
      images.push_back(name);
  }
  if (images.empty()) return;
  const std::string& name = images[random() % images.size()];
  const std::string format = name.substr(name.find('.') + 1);
  ended("coalesce", vbdkit({"coalesce", format + ":" + file(name)}, patience(random)));
}

void LiveLoad::gc(Random& random) {
  const std::shared_lock lock(files_);
  ended("gc", vbdkit({"gc", "--inner", world().dir() + "/images"}, patience(random)));
}

void LiveLoad::refresh(Random& random) {
  const auto record = instance_of(any(random));
  if (!record) return;
  ended("refresh", vbdkit({"refresh", record->uuid}));
}

void LiveLoad::pause(Random& random) {
  const auto record = instance_of(any(random));
  if (!record) return;
  ended("pause", vbdkit({"pause", "--timeout", "1", record->uuid}, patience(random)));
  if (random() % 2 == 0) ended("resume", vbdkit({"resume", record->uuid}));
}

void LiveLoad::grow(Random& random) {
  const auto record = instance_of(any(random));
  if (!record) return;
  ended("grow", vbdkit({"grow", record->uuid, "+1M"}, patience(random)));
}

Result<std::string> outcome_of_job(control::QmpClient& client, bool complete) {
  for (;;) {
    VBDKIT_ASSIGN(const auto event, client.event(3min));
    const auto name = event.member("event").string();
    if (name == "BLOCK_JOB_READY" && complete) {
      VBDKIT_TRY(client.execute("block-job-complete", R"({"device":"disk"})"));
    } else if (name == "BLOCK_JOB_COMPLETED" || name == "BLOCK_JOB_CANCELLED") {
      return event.member("data").member("error").string().value_or("");
    }
  }
}

// The disk's image into its parent.
void LiveLoad::commit(Random& random) {
  const std::shared_lock lock(files_);
  LoadDisk& disk = any(random);
  const auto record = instance_of(disk);
  if (!record || record->chain.size() < 2) return;
  auto client = control::QmpClient::connect(record->qmp_socket());
  if (!client) return refused("commit", client.error().message());
  const auto started = client->execute(
      "block-commit", R"({"device":"disk","base":")" + record->chain[1].path + "\"}");
  if (!started) return refused("commit", started.error().message());
  const bool cancel = random() % 5 == 0;
  if (cancel && !client->execute("block-job-cancel", R"({"device":"disk"})")) return;
  const auto end = outcome_of_job(*client, true);
  if (!end) return refused("commit", end.error().message());
  if (!end->empty()) return refused("commit", *end);
  succeeded(cancel ? "commit cancelled" : "commit");
}

// What its parents hold, of all or of those above one, into the disk's image.
void LiveLoad::stream(Random& random) {
  const std::shared_lock lock(files_);
  const LoadDisk& disk = any(random);
  const auto record = instance_of(disk);
  if (!record || record->chain.size() < 2) return;
  std::vector<std::string> arguments = {"stream", spec(disk)};
  if (random() % 3 != 0) {
    arguments.push_back("--base");
    arguments.push_back(record->chain[1 + random() % (record->chain.size() - 1)].path);
  }
  ended("stream", vbdkit(arguments, patience(random)));
}

void LiveLoad::backup(Random& random) {
  LoadDisk& disk = any_nbd(random);
  const auto record = instance_of(disk);
  if (!record) return;
  auto client = control::QmpClient::connect(record->qmp_socket());
  if (!client) return refused("backup", client.error().message());
  const std::string copy = fresh("backup");
  const auto since = disk.model->since();
  const auto started =
      client->execute("drive-backup", R"({"device":"disk","sync":"full","target":")" + copy +
                                          R"(","format":"qcow2"})");
  if (!started) {
    refused("backup", started.error().message());
  } else if (const auto end = outcome_of_job(*client, false); !end || !end->empty()) {
    refused("backup", end ? *end : end.error().message());
  } else {
    succeeded("backup");
    expect_copy(disk, *since, "qcow2:" + copy, "a backup");
  }
  fs::remove(copy);
}

void LiveLoad::crash(Random& random) {
  LoadDisk& disk = any_nbd(random);
  const std::lock_guard lock(disk.instance);
  const auto record = registry().read(disk.uuid);
  if (!record || !record->alive) return;
  disk.model->crash();
  ::kill(record->pid, SIGKILL);
  succeeded("crash");
}

void LiveLoad::finish() {
  // What was killed in the middle is ended.
  Outcome last;
  for (int i = 0; i < 10 && !last.ok; ++i) last = vbdkit({"gc", world().dir() + "/images"});
  if (!last.ok) problem("gc at the end: " + last.output);
  for (auto& front : fronts_) must(front->close(soon()));
  for (const auto& disk : disks_) {
    const auto record = instance_of(*disk);
    if (!record) {
      problem(disk->name + " has no instance at the end");
      continue;
    }
    if (!disk->model) {
      must(must(control::QmpClient::connect(record->qmp_socket())).execute("quit"));
      continue;
    }
    const Outcome end = vbdkit({"deactivate", "--wait", "60", record->uuid});
    if (!end.ok) problem("deactivate " + disk->name + ": " + end.output);
  }
  for (Process* process : ring_backends_)
    if (const auto end = process->wait(in(1min)); !end || *end != 0)
      problem("a ring's instance does not end: " + process->log());
  for (size_t i = 0; i < disks_.size(); ++i) {
    const LoadDisk& disk = *disks_[i];
    const auto found = content(spec(disk));
    if (found.size() < kSectors * 512) continue;  // said already
    const auto all = std::span(found);
    if (disk.model) {
      if (const auto wrong = disk.model->wrong(0, all.first(kSectors * 512)))
        problem(disk.name + ": " + *wrong);
    } else {
      for (uint64_t s = 0; s < kSectors; ++s)
        if (!ring_models_[i - kNbdDisks]->holds(s, found.data() + s * 512))
          problem(disk.name + ": sector " + std::to_string(s) + " is wrong");
    }
    const auto grown = all.subspan(kSectors * 512);
    if (std::any_of(grown.begin(), grown.end(), [](std::byte b) { return b != std::byte{0}; }))
      problem(disk.name + ": what it has grown by is not zero");
  }
  for (const auto& entry : fs::directory_iterator(world().dir() + "/images")) {
    const std::string path = entry.path();
    const std::string format = path.substr(path.find_last_of('.') + 1);
    if (format != "qcow2" && format != "vhd") {
      problem("left: " + path);
      continue;
    }
    auto process = must(Process::start({program("vbdkit"), "check", format + ":" + path},
                                       {.log_path = world().dir() + "/check.log"}));
    const int status = must(process->wait(in(1min)));
    // What was killed may leave space that is lost, and no more.
    if (!WIFEXITED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 3))
      problem("check " + path + ": " + process->log());
  }
}

TEST_F(LiveLoad, NothingIsLostAndNothingIsStale) {
  const auto seconds = std::chrono::seconds(number_from("VBDKIT_LOAD_SECONDS", 15));
  const uint64_t seed =
      number_from("VBDKIT_LOAD_SEED", static_cast<uint64_t>(::getpid()) * 7919 + 1);
  std::cout << "VBDKIT_LOAD_SEED=" << seed << "\n";
  make_disks();
  ASSERT_FALSE(HasFailure());
  std::vector<std::thread> writers;
  for (size_t i = 0; i < kNbdDisks; ++i) start_nbd(*disks_[i]);
  for (size_t i = kNbdDisks; i < disks_.size(); ++i) {
    LoadDisk& disk = *disks_[i];
    disk.uuid = disk.name;
    Guest& guest = *must(world().create_guest());
    const Disk vbd = must(world().toolstack().attach(guest.domid(), {.target = disk.path}));
    ring_backends_.push_back(must(world().launch(
        disk.name, {backend(), "--spec", spec(disk), "--uuid", disk.uuid, "--runtime-dir",
                    runtime_dir_ + "/instances/" + disk.uuid, "--vbd", vbd.backend_path})));
    fronts_.push_back(must(Frontend::create(guest, vbd.devid, {})));
    must(fronts_.back()->connect(soon()));
    ring_models_.push_back(std::make_unique<VerifiedDisk>(kSectors));
  }
  for (size_t i = 0; i < kNbdDisks && !failed_; ++i)
    writers.emplace_back([this, i, seed] { write_over_nbd(*disks_[i], seed + i); });
  writers.emplace_back([this, seed] { write_to_rings(seed); });
  std::vector<std::thread> admins;
  for (unsigned i = 0; i < kAdmins; ++i)
    admins.emplace_back([this, i, seed] { admin(seed * 31 + i); });
  // On a slow machine until each thing was done once.
  const auto enough = [&] {
    const std::lock_guard lock(mutex_);
    return std::all_of(choices().begin(), choices().end(),
                       [&](const Choice& c) { return !c.must || done_[c.name].first > 0; });
  };
  for (const auto end = in(seconds), last = end + 3min; !failed_;) {
    const auto now = std::chrono::steady_clock::now();
    if (now > last || (now > end && enough())) break;
    ::usleep(20'000);
  }
  over_ = true;
  for (auto& thread : admins) thread.join();
  writers_over_ = true;
  for (auto& thread : writers) thread.join();
  if (!failed_) finish();
  for (const auto& [what, times] : done_)
    std::cout << what << ": " << times.first << ", refused " << times.second << "\n";
  std::cout << requests_ << " requests\n";
  for (const std::string& what : problems_) ADD_FAILURE() << what;
  EXPECT_TRUE(enough());
}

}  // namespace
}  // namespace vbdkit::sim
