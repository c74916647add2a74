// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit info: what an image says of itself, and of those it stands on.
#include <cinttypes>
#include <cstdio>
#include <ctime>

#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/terminal.h"

namespace vbdkit::storage {
namespace {

void line(const std::string& label, const std::string& value) {
  std::printf("%-18s %s\n", (label + ":").c_str(), printable(value).c_str());
}

std::string size_text(Bytes size) {
  return human_size(size.v) + " (" + std::to_string(size.v) + " bytes)";
}

std::string value_text(const drivers::Attribute& attribute) {
  if (const auto* flag = std::get_if<bool>(&attribute.value)) return *flag ? "yes" : "no";
  if (const auto* number = std::get_if<uint64_t>(&attribute.value)) return std::to_string(*number);
  return std::get<std::string>(attribute.value);
}

void print_snapshots(const std::vector<drivers::InternalSnapshot>& snapshots) {
  for (const drivers::InternalSnapshot& snapshot : snapshots) {
    const auto seconds = static_cast<time_t>(snapshot.seconds);
    tm broken_down{};
    char when[32] = "";
    if (gmtime_r(&seconds, &broken_down) != nullptr)
      strftime(when, sizeof when, "%F %T UTC", &broken_down);
    line("internal snapshot",
         snapshot.id + " '" + snapshot.name + "', " + when + ", " + human_size(snapshot.size.v));
  }
}

void print_image(const std::string& path, const drivers::ImageFacts& facts) {
  line("image", path);
  line("format", facts.format);
  line("disk", size_text(facts.size));
  line("file", size_text(facts.file_size));
  line("allocated", size_text(facts.allocated));
  if (facts.cluster != 0) line("cluster", human_size(facts.cluster));
  if (!facts.uuid.empty()) line("uuid", facts.uuid);
  for (const drivers::Attribute& attribute : facts.attributes)
    line(attribute.name, value_text(attribute));
  if (facts.parent) {
    line("parent", facts.parent->path);
    line("parent's format", facts.parent->format.empty() ? "not recorded" : facts.parent->format);
    if (!facts.parent->uuid.empty()) line("parent's uuid", facts.parent->uuid);
  }
  print_snapshots(facts.snapshots);
}

Result<int> show_image(const drivers::NodeSpec& image, bool json) {
  VBDKIT_ASSIGN(const drivers::ImageFormat* const format, format_of(image));
  VBDKIT_ASSIGN(const drivers::ImageFacts facts, format->inspect(image.path));
  if (json)
    print_json(to_json(facts, image.path));
  else
    print_image(image.path, facts);
  return kExitOk;
}

// Shows as much of the chain as there is.
Result<int> show_chain(const drivers::NodeSpec& image, bool json) {
  VBDKIT_TRY(format_of(image));
  drivers::ChainFacts chain = drivers::inspect_chain(image.path, image.driver);
  Json list = Json::array();
  for (size_t i = 0; i < chain.images.size(); ++i) {
    if (json) {
      list.push_back(to_json(chain.images[i], chain.paths[i]));
      continue;
    }
    if (i > 0) std::putchar('\n');
    print_image(chain.paths[i], chain.images[i]);
  }
  if (json) {
    Json all = {{"chain", std::move(list)}};
    if (chain.broken) all["error"] = to_json(*chain.broken);
    print_json(all);
  }
  if (chain.broken) return std::move(*chain.broken);
  return kExitOk;
}

Result<int> run(const po::variables_map& vm) {
  VBDKIT_ASSIGN(const drivers::NodeSpec image, parse_image_or_path(text_of(vm, "SPEC")));
  const bool json = vm.count("json") != 0;
  return vm.count("chain") != 0 ? show_chain(image, json) : show_image(image, json);
}

}  // namespace

int info(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("info [OPTION...] SPEC|FILE", {"SPEC"});
  syntax.options.add_options()  //
      ("json", "for programs")  //
      ("chain,c", "its parents too, down to the base image");
  return run_command(syntax, args, log, run);
}

}  // namespace vbdkit::storage
