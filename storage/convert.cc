// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit convert: the content of one disk into an image of any format.
#include <sys/stat.h>
#include <unistd.h>

#include "drivers/jobs/copy_job.h"
#include "drivers/options.h"
#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/image_options.h"
#include "storage/job_runner.h"

namespace vbdkit::storage {
namespace {

// The file that convert made; it goes where the copying fails.
class NewImage {
 public:
  NewImage() = default;
  NewImage(const NewImage&) = delete;
  NewImage& operator=(const NewImage&) = delete;
  ~NewImage() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  void made(const std::string& path) { path_ = path; }
  bool is_made() const { return !path_.empty(); }
  Result<void> flush() const {
    VBDKIT_ASSIGN(drivers::ImageFile file,
                  drivers::ImageFile::open(path_, drivers::ImageFile::Mode::kWrite));
    return file.flush();
  }
  void keep() { path_.clear(); }

 private:
  std::string path_;
};

bool is_block_device(const std::string& path) {
  struct stat st {};
  return ::stat(path.c_str(), &st) == 0 && S_ISBLK(st.st_mode);
}

Result<drivers::CopyOptions> copy_options(const po::variables_map& vm) {
  drivers::CopyOptions options;
  options.requests = vm["requests"].as<unsigned>();
  if (options.requests == 0 || options.requests > 256)
    return usage_error("--requests is from 1 to 256");
  const auto sparse = drivers::parse_size(text_of(vm, "sparse"));
  if (!sparse) return usage_error("--sparse: " + sparse.error().message());
  options.sparse = *sparse;
  return options;
}

// Makes the destination, or takes the one that is there.
Result<void> prepare(const po::variables_map& vm, const drivers::GraphSpec& to, Bytes size,
                     drivers::CopyOptions& options, NewImage& image) {
  VBDKIT_ASSIGN(auto format_options, parse_options(vm));
  if (vm.count("no-create") != 0) {
    if (!format_options.empty()) return usage_error("--option and --no-create exclude each other");
    return {};
  }
  if (to.nodes.size() != 1)
    return usage_error("a new image has no filters in front of it (--no-create takes them)");
  VBDKIT_ASSIGN(const drivers::ImageFormat* const format, format_of(to.leaf()));
  drivers::CreateRequest request;
  request.path = to.leaf().path;
  request.size = size;
  request.options = std::move(format_options);
  VBDKIT_TRY(format->create(request));
  if (is_block_device(request.path)) return {};
  image.made(request.path);
  options.destination_zero = true;
  return {};
}

Result<void> check_room(const drivers::Node& source, const drivers::Node& destination) {
  const uint64_t needed = source.info().size.v;
  const uint64_t there = destination.info().size.v;
  if (there >= needed) return {};
  return Error(ErrorKind::kNoSpace,
               destination.spec() + " has " + std::to_string(there) + " bytes, " + source.spec() +
                   " needs " + std::to_string(needed),
               ENOSPC);
}

Result<int> run(const po::variables_map& vm, const Logger& log) {
  VBDKIT_ASSIGN(const drivers::GraphSpec from, drivers::parse_graph(text_of(vm, "SRC")));
  VBDKIT_ASSIGN(const drivers::GraphSpec to, drivers::parse_graph(text_of(vm, "DST")));
  VBDKIT_ASSIGN(drivers::CopyOptions options, copy_options(vm));
  VBDKIT_ASSIGN(const io::EngineKind engine, engine_of(vm));
  NewImage image;  // goes after the node that has it open
  VBDKIT_ASSIGN(const auto runner, JobRunner::create(engine, log));
  VBDKIT_ASSIGN(const drivers::NodePtr source, runner->open(from, true));
  VBDKIT_TRY(prepare(vm, to, source->info().size, options, image));
  Result<void> outcome;
  {
    VBDKIT_ASSIGN(const drivers::NodePtr destination, runner->open(to, false, image.is_made()));
    VBDKIT_TRY(check_room(*source, *destination));
    drivers::CopyJob job(*source, *destination, options);
    VBDKIT_TRY(runner->run("convert", job, [&] {
      job.start([&](Result<void> result) {
        outcome = std::move(result);
        runner->finished();
      });
    }));
  }
  VBDKIT_TRY(std::move(outcome));
  if (vm.count("flush") != 0 && image.is_made()) VBDKIT_TRY(image.flush());
  image.keep();
  return kExitOk;
}

}  // namespace

int convert(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("convert [OPTION...] SRC DST", {"SRC", "DST"});
  syntax.options.add_options()                                                //
      ("no-create,n", "write into an image or device that is there already")  //
      ("sparse", po::value<std::string>()->value_name("SIZE")->default_value("64K"),
       "so many zeroes together are left out; 0: only what is known to be a hole")  //
      ("requests", po::value<unsigned>()->value_name("N")->default_value(16),
       "under way at a time")  //
      ("flush", "wait until the new image is on stable storage");
  add_format_options(syntax);
  add_engine_option(syntax);
  return run_command(syntax, args, log, [&](const po::variables_map& vm) { return run(vm, log); });
}

}  // namespace vbdkit::storage
