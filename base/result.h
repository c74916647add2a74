// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Result<T>: a value or an Error. Every function that can fail returns one; nothing throws.
// An Error carries a stable kind (what a program decides on) and a sentence that says what failed,
// on what, and why (what a person reads). It becomes a BLKIF_RSP_*, an NBD error or an exit code
// only at the edge. Values only; no thread affinity.
#pragma once

#include <cerrno>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace vbdkit {

enum class ErrorKind {
  kInvalid,      // the caller's input is wrong: a spec, an argument, a message
  kNotFound,     // the thing named does not exist
  kPermission,   // it exists and may not be used so
  kBusy,         // somebody else holds it
  kUnsupported,  // well-formed, but this build or kernel or format cannot do it
  kCorrupt,      // data on disk contradicts itself
  kProtocol,     // a peer (guest, NBD client, xenstore) broke its protocol
  kNoSpace,      // storage is full
  kTimedOut,     // a deadline passed
  kIo,           // any other failure of the system beneath
};

// The kind's name as printed in --json output and logs: "invalid", "not-found", …
std::string_view to_string(ErrorKind kind);

// Its makers are cold, and with them the branches that call them: the linker puts those aside,
// where they cost a running instance no memory.
class [[nodiscard]] Error {
 public:
  [[gnu::cold]] Error(ErrorKind kind, std::string message, int sys_errno = 0);

  // `what` names the operation and its object ("raw: open /srv/a.img"); the reason is strerror's.
  [[gnu::cold]] static Error from_errno(int sys_errno, std::string_view what);

  ErrorKind kind() const { return kind_; }
  const std::string& message() const { return message_; }
  // The errno nearest to this error; never 0.
  int sys_errno() const;

  // "prefix: message": adds who was asking, on the way up.
  [[gnu::cold]] Error context(std::string_view prefix) &&;

 private:
  ErrorKind kind_;
  int errno_;
  std::string message_;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : v_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : v_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return v_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & { return *std::get_if<0>(&v_); }
  const T& value() const& { return *std::get_if<0>(&v_); }
  T&& value() && { return std::move(*std::get_if<0>(&v_)); }
  T* operator->() { return std::get_if<0>(&v_); }
  const T* operator->() const { return std::get_if<0>(&v_); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }

  const Error& error() const& { return *std::get_if<1>(&v_); }
  Error&& error() && { return std::move(*std::get_if<1>(&v_)); }

 private:
  std::variant<T, Error> v_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : v_(std::move(error)) {}

  bool ok() const { return v_.index() == 0; }
  explicit operator bool() const { return ok(); }
  const Error& error() const& { return *std::get_if<1>(&v_); }
  Error&& error() && { return std::move(*std::get_if<1>(&v_)); }

 private:
  std::variant<std::monostate, Error> v_;
};

}  // namespace vbdkit

// Returns the error of a Result expression to the caller, or goes on.
#define VBDKIT_TRY(expr)                           \
  do {                                             \
    auto vbdkit_try_result = (expr);               \
    if (!vbdkit_try_result) [[unlikely]]           \
      return std::move(vbdkit_try_result).error(); \
  } while (0)

#define VBDKIT_TRY_CONCAT2(a, b) a##b
#define VBDKIT_TRY_CONCAT(a, b) VBDKIT_TRY_CONCAT2(a, b)
// `VBDKIT_ASSIGN(auto fd, Fd::open(...));`: the value, or the error returned to the caller.
#define VBDKIT_ASSIGN(decl, expr)                                     \
  auto VBDKIT_TRY_CONCAT(vbdkit_r_, __LINE__) = (expr);               \
  if (!VBDKIT_TRY_CONCAT(vbdkit_r_, __LINE__)) [[unlikely]]           \
    return std::move(VBDKIT_TRY_CONCAT(vbdkit_r_, __LINE__)).error(); \
  decl = std::move(VBDKIT_TRY_CONCAT(vbdkit_r_, __LINE__)).value()
