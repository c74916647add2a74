// SPDX-License-Identifier: LGPL-2.1-or-later
//
// qcow2 images as the tools see them.
#include "drivers/image_format.h"

#include <algorithm>

#include "drivers/qcow2/check.h"
#include "drivers/qcow2/create.h"
#include "drivers/qcow2/info.h"
#include "drivers/qcow2/rebase.h"

namespace vbdkit::drivers {
namespace {

constexpr FormatOption kOptions[] = {
    {"cluster_size", "512..2M"},       {"compat", "0.10|1.1"},
    {"compression_type", "zlib|zstd"}, {"extended_l2", "on|off"},
    {"lazy_refcounts", "on|off"},      {"preallocation", "off|metadata|falloc|full"},
    {"refcount_bits", "1..64"},
};

Result<void> create(const CreateRequest& request) {
  for (const auto& [key, value] : request.options)
    if (std::none_of(std::begin(kOptions), std::end(kOptions),
                     [&name = key](const FormatOption& o) { return name == o.key; }))
      return unknown_option("qcow2", key, kOptions);
  Bytes size{align_up(request.size.v, kSectorSize)};
  std::string recorded;
  if (!request.parent.empty()) {
    const ImageFormat* const format = find_image_format(request.parent_format);
    if (format == nullptr)
      return Error(ErrorKind::kUnsupported,
                   "qcow2: format '" + request.parent_format + "' is not known");
    // Also where the size is given: a parent that is not there is better found now.
    VBDKIT_ASSIGN(const ImageFacts parent, format->inspect(request.parent));
    if (size.v == 0) size = parent.size;
    recorded = request.parent;
    // What is not absolute counts from our directory here, from the image's in its header.
    if (!recorded.starts_with('/')) {
      VBDKIT_ASSIGN(recorded, relative_parent(request.path, request.parent));
    }
  }
  if (size.v == 0)
    return Error(ErrorKind::kInvalid, "qcow2: create " + request.path + ": a size is missing");
  VBDKIT_ASSIGN(qcow2::CreateOptions options, qcow2::parse_create_options(size, request.options));
  options.backing_file = recorded;
  options.backing_format = request.parent_format;
  return qcow2::create_image(request.path, options);
}

Result<ImageFacts> inspect(const std::string& path) {
  VBDKIT_ASSIGN(const ImageFile file, ImageFile::open(path, ImageFile::Mode::kRead));
  VBDKIT_ASSIGN(qcow2::ImageInfo info, qcow2::read_info(path));
  const qcow2::Header& header = info.header;
  ImageFacts facts;
  facts.format = "qcow2";
  facts.size = Bytes{align_down(header.size, kSectorSize)};
  VBDKIT_TRY(add_file_facts(file, facts));
  facts.cluster = static_cast<uint32_t>(header.geometry.cluster_size());
  VBDKIT_ASSIGN(facts.parent, qcow2::backing_reference(path, header));
  facts.attributes = {
      {"compat", header.version == 2 ? "0.10" : "1.1"},
      {"compression-type", header.compression == qcow2::Compression::kZstd ? "zstd" : "zlib"},
      {"lazy-refcounts", header.lazy_refcounts()},
      {"refcount-bits", uint64_t{header.geometry.refcount_bits()}},
      {"extended-l2", header.geometry.extended},
      {"corrupt", header.corrupt()},
      {"dirty", header.dirty()},
      {"bitmaps", uint64_t{header.bitmaps ? header.bitmaps->count : 0}},
  };
  for (const qcow2::Snapshot& snapshot : info.snapshots)
    facts.snapshots.push_back({snapshot.id, snapshot.name, snapshot.seconds,
                               Bytes{snapshot.disk_size != 0 ? snapshot.disk_size : header.size}});
  return facts;
}

Result<CheckOutcome> check(const std::string& path, bool repair) {
  VBDKIT_ASSIGN(qcow2::CheckResult result,
                qcow2::check_image(path, repair ? qcow2::Repair::kAll : qcow2::Repair::kNone));
  VBDKIT_ASSIGN(const qcow2::ImageInfo info, qcow2::read_info(path));
  CheckOutcome outcome;
  outcome.errors = result.corruptions;
  outcome.remains = result.leaks;
  outcome.errors_repaired = result.corruptions_fixed;
  outcome.remains_repaired = result.leaks_fixed;
  outcome.leaked = Bytes{result.leaks << info.header.geometry.cluster_bits};
  outcome.clusters = result.total_clusters;
  outcome.allocated = result.allocated_clusters;
  outcome.messages = std::move(result.messages);
  return outcome;
}

Result<std::vector<FilePatch>> plan_parent(const std::string& path, const std::string& parent,
                                           const std::string& parent_format) {
  VBDKIT_ASSIGN(const qcow2::ImageInfo info, qcow2::read_info(path));
  const bool absolute = info.header.backing_file.starts_with('/');
  VBDKIT_ASSIGN(const std::string recorded,
                absolute ? absolute_parent(parent) : relative_parent(path, parent));
  auto plan = qcow2::plan_backing_file(path, recorded, parent_format);
  if (!plan) return std::move(plan).error().context("qcow2: " + path);
  return plan;
}

Result<std::vector<FilePatch>> plan_alone(const std::string& path) {
  auto plan = qcow2::plan_no_backing_file(path);
  if (!plan) return std::move(plan).error().context("qcow2: " + path);
  return plan;
}

}  // namespace

ImageFormat qcow2_image_format() {
  return {"qcow2", ".qcow2", {"QFI\xfb", 4}, kOptions,  create,
          inspect, check,    plan_parent,    plan_alone};
}

}  // namespace vbdkit::drivers
