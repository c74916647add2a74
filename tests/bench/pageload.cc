// SPDX-License-Identifier: LGPL-2.1-or-later
//
// pageload: reads 4 KiB at random of a disk's bytes where they lie in its images' files, by
// pread(2): what the kernel takes for it, without a server.
//
//   vbdkit map --json SPEC | pageload [SECONDS]
//
// Prints one JSON object, as nbdload does: iops and CPU time per request.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/fd.h"

namespace {

using Clock = std::chrono::steady_clock;
constexpr uint64_t kPage = 4096;  // bytes

struct Page {
  int fd;
  off_t offset;
};

[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "pageload: %s\n", what.c_str());
  std::exit(1);
}

double own_cpu_us() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto us = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_usec);
  };
  return us(usage.ru_utime) + us(usage.ru_stime);
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::stod(argv[1]) : 1;
  const auto map = nlohmann::json::parse(std::cin, nullptr, false);
  if (!map.is_array()) die("expected the output of vbdkit map --json");
  std::map<std::string, vbdkit::Fd> files;
  std::vector<Page> pages;
  for (const auto& extent : map) {
    if (extent.value("kind", "") != "data") continue;
    const std::string name = extent["file"];
    auto& file = files.try_emplace(name).first->second;
    if (!file.valid()) file = vbdkit::Fd(::open(name.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.valid()) die("open " + name + ": " + std::to_string(errno));
    const uint64_t length = extent["length"];
    for (uint64_t at = 0; at + kPage <= length; at += kPage)
      pages.push_back({file.get(), static_cast<off_t>(extent["file-offset"].get<uint64_t>() + at)});
  }
  if (pages.empty()) die("there is nothing to read");
  char memory[kPage];
  uint64_t random = 88172645463325252;
  uint64_t done = 0;
  const double cpu = own_cpu_us();
  const auto start = Clock::now();
  std::chrono::duration<double> taken{};
  while (taken.count() < seconds) {
    for (unsigned i = 0; i < 256; ++i, ++done) {
      random ^= random << 13;
      random ^= random >> 7;
      random ^= random << 17;
      const Page& page = pages[random % pages.size()];
      if (::pread(page.fd, memory, kPage, page.offset) != ssize_t{kPage}) die("a read failed");
    }
    taken = Clock::now() - start;
  }
  const auto count = static_cast<double>(done);
  std::printf("{\"iops\":%.0f,\"cpu_us_per_io\":%.4f}\n", count / taken.count(),
              (own_cpu_us() - cpu) / count);
}
