// SPDX-License-Identifier: LGPL-2.1-or-later
//
// VHDs as the tools see them.
#include "drivers/image_format.h"

#include <algorithm>

#include "drivers/options.h"
#include "drivers/vhd/check.h"
#include "drivers/vhd/create.h"
#include "drivers/vhd/metadata.h"

namespace vbdkit::drivers {
namespace {

constexpr FormatOption kOptions[] = {
    {"batmap", "on|off"}, {"block_size", "512K|1M|2M"}, {"subformat", "dynamic|fixed"}};

Result<vhd::CreateOptions> read_options(const CreateRequest& request) {
  for (const auto& [key, value] : request.options)
    if (std::none_of(std::begin(kOptions), std::end(kOptions),
                     [&name = key](const FormatOption& o) { return name == o.key; }))
      return unknown_option("vhd", key, kOptions);
  const NodeSpec spec{"vhd", {}, request.options};
  const OptionReader reader(spec);
  vhd::CreateOptions options;
  options.size = request.size;
  VBDKIT_ASSIGN(options.batmap, reader.flag("batmap", true));
  VBDKIT_ASSIGN(const uint64_t block, reader.size("block_size", vhd::kMaxBlock));
  options.block_size = static_cast<uint32_t>(std::min<uint64_t>(block, UINT32_MAX));
  const auto subformat = request.options.find("subformat");
  if (subformat != request.options.end() && subformat->second == "fixed")
    options.type = vhd::DiskType::kFixed;
  else if (subformat != request.options.end() && subformat->second != "dynamic")
    return Error(ErrorKind::kInvalid,
                 "vhd: subformat=" + subformat->second + ": expected dynamic or fixed");
  if (request.parent.empty()) return options;
  if (options.type == vhd::DiskType::kFixed)
    return Error(ErrorKind::kInvalid, "vhd: a fixed disk has no parent");
  if (request.parent_format != "vhd" && request.parent_format != "raw")
    return Error(ErrorKind::kUnsupported,
                 "vhd: the parent of a VHD is a VHD or raw, not " + request.parent_format);
  options.type = vhd::DiskType::kDifferencing;
  options.parent = request.parent;
  options.raw_parent = request.parent_format == "raw";
  return options;
}

Result<void> create(const CreateRequest& request) {
  VBDKIT_ASSIGN(const vhd::CreateOptions options, read_options(request));
  return vhd::create(request.path, options);
}

// "tap": what a footer has as its creator may hold anything.
std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text)
    if (c > ' ' && c < 0x7f) out += c;
  return out;
}

Result<ImageFacts> inspect(const std::string& path) {
  VBDKIT_ASSIGN(const ImageFile file, ImageFile::open(path, ImageFile::Mode::kRead));
  VBDKIT_ASSIGN(const vhd::Metadata metadata, vhd::read_metadata(file));
  const vhd::Footer& footer = metadata.footer;
  ImageFacts facts;
  facts.format = "vhd";
  facts.size = metadata.size();
  VBDKIT_TRY(add_file_facts(file, facts));
  if (!vhd::is_null(footer.uuid)) facts.uuid = vhd::to_string(footer.uuid);
  facts.attributes.push_back({"subformat", metadata.fixed()          ? "fixed"
                                           : metadata.differencing() ? "differencing"
                                                                     : "dynamic"});
  facts.attributes.push_back(
      {"creator", printable({footer.creator.data(), footer.creator.size()})});
  facts.attributes.push_back({"hidden", footer.hidden});
  if (!metadata.fixed()) {
    facts.cluster = metadata.header.block_size;
    facts.attributes.push_back({"batmap", metadata.batmap.has_value()});
  }
  if (metadata.differencing()) {
    VBDKIT_ASSIGN(facts.parent, vhd::read_parent(file, metadata));
  }
  return facts;
}

Result<CheckOutcome> check(const std::string& path, bool repair) {
  VBDKIT_ASSIGN(vhd::CheckReport report, vhd::check(path, repair));
  CheckOutcome outcome;
  const size_t before = report.remains.size() + report.errors.size();
  outcome.messages = report.errors;
  outcome.messages.insert(outcome.messages.end(), report.remains.begin(), report.remains.end());
  if (repair && before > 0) {
    const size_t errors = report.errors.size();
    const size_t remains = report.remains.size();
    VBDKIT_ASSIGN(report, vhd::check(path, false));
    outcome.errors_repaired = errors - std::min(errors, report.errors.size());
    outcome.remains_repaired = remains - std::min(remains, report.remains.size());
  }
  outcome.errors = report.errors.size();
  outcome.remains = report.remains.size();
  outcome.leaked = Bytes{report.leaked};
  if (report.leaked > 0) {
    ++outcome.remains;
    outcome.messages.push_back(std::to_string(report.leaked) +
                               " bytes of the file belong to nothing");
  }
  outcome.clusters = report.blocks;
  outcome.allocated = report.allocated;
  return outcome;
}

Result<std::vector<FilePatch>> plan_parent(const std::string& path, const std::string& parent,
                                           const std::string& parent_format) {
  if (parent_format != "vhd" && parent_format != "raw")
    return Error(ErrorKind::kUnsupported,
                 "vhd: " + path + ": the parent of a VHD is a VHD or raw, not " + parent_format);
  return vhd::plan_parent(path, parent, parent_format == "raw");
}

}  // namespace

ImageFormat vhd_image_format() {
  return {"vhd",   ".vhd", "conectix",  kOptions,       create,
          inspect, check,  plan_parent, vhd::plan_alone};
}

}  // namespace vbdkit::drivers
