// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit check: whether an image contradicts itself.
#include <cstdio>

#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/offline_claims.h"
#include "storage/terminal.h"

namespace vbdkit::storage {
namespace {

int exit_code(const drivers::CheckOutcome& outcome) {
  if (outcome.errors > 0) return kExitErrorsFound;
  return outcome.remains > 0 ? kExitRemainsFound : kExitOk;
}

const char* verdict(const drivers::CheckOutcome& outcome) {
  switch (exit_code(outcome)) {
    case kExitErrorsFound:
      return "errors";
    case kExitRemainsFound:
      return "remains";
    default:
      return "clean";
  }
}

void print_text(const std::string& path, const drivers::CheckOutcome& outcome) {
  const auto count = [](const char* text, uint64_t n) {
    if (n > 0) std::printf("%s: %llu\n", text, static_cast<unsigned long long>(n));
  };
  for (const std::string& message : outcome.messages) std::puts(printable(message).c_str());
  count("errors repaired", outcome.errors_repaired);
  count("harmless remains cleared", outcome.remains_repaired);
  count("errors", outcome.errors);
  count("harmless remains", outcome.remains);
  if (outcome.leaked.v > 0) std::printf("leaked: %s\n", human_size(outcome.leaked.v).c_str());
  if (outcome.clusters > 0)
    std::printf("%llu of %llu clusters allocated\n",
                static_cast<unsigned long long>(outcome.allocated),
                static_cast<unsigned long long>(outcome.clusters));
  std::printf("%s: %s\n", printable(path).c_str(),
              outcome.errors > 0    ? "damaged"
              : outcome.remains > 0 ? "sound, with harmless remains"
                                    : "no errors found");
}

void print_outcome(const std::string& path, const drivers::CheckOutcome& outcome) {
  print_json({{"path", path},
              {"result", verdict(outcome)},
              {"errors", outcome.errors},
              {"remains", outcome.remains},
              {"errors-repaired", outcome.errors_repaired},
              {"remains-repaired", outcome.remains_repaired},
              {"leaked", outcome.leaked.v},
              {"clusters", outcome.clusters},
              {"allocated-clusters", outcome.allocated},
              {"messages", outcome.messages}});
}

Result<int> run(const po::variables_map& vm, const Logger& log) {
  VBDKIT_ASSIGN(const drivers::NodeSpec image, parse_image(text_of(vm, "SPEC")));
  VBDKIT_ASSIGN(const drivers::ImageFormat* const format, format_of(image));
  const bool repair = vm.count("repair") != 0;
  const auto mode = repair ? drivers::LockMode::kWriter : drivers::LockMode::kReader;
  VBDKIT_ASSIGN(const auto claims,
                OfflineClaims::take({{image.path, ImageClaims::mode_of(!repair, false)}}, log));
  VBDKIT_ASSIGN(const drivers::ImageLock lock, drivers::ImageLock::take(image.path, mode));
  drivers::CheckOutcome outcome;
  if (format->check != nullptr) {
    VBDKIT_ASSIGN(outcome, format->check(image.path, repair));
  }
  if (vm.count("json") != 0)
    print_outcome(image.path, outcome);
  else
    print_text(image.path, outcome);
  return exit_code(outcome);
}

}  // namespace

int check(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("check [OPTION...] SPEC", {"SPEC"});
  syntax.options.add_options()                                      //
      ("repair,r", "put right what can be put right without loss")  //
      ("json", "for programs");
  return run_command(syntax, args, log, [&](const po::variables_map& vm) { return run(vm, log); });
}

}  // namespace vbdkit::storage
