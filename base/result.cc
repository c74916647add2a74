// SPDX-License-Identifier: LGPL-2.1-or-later
#include "base/result.h"

#include <cstring>
#include <utility>

namespace vbdkit {
namespace {

ErrorKind kind_of_errno(int e) {
  switch (e) {
    case EINVAL:
    case ENAMETOOLONG:
      return ErrorKind::kInvalid;
    case ENOENT:
    case ENOTDIR:
    case ENODEV:
    case ENXIO:
      return ErrorKind::kNotFound;
    case EACCES:
    case EPERM:
    case EROFS:
      return ErrorKind::kPermission;
    case EBUSY:
    case EAGAIN:
    case EEXIST:
    case ETXTBSY:
    case EADDRINUSE:
      return ErrorKind::kBusy;
    case EOPNOTSUPP:
    case ENOSYS:
    case ENOTTY:
      return ErrorKind::kUnsupported;
    case ENOSPC:
    case EDQUOT:
      return ErrorKind::kNoSpace;
    case ETIMEDOUT:
      return ErrorKind::kTimedOut;
    case EPROTO:
      return ErrorKind::kProtocol;
    default:
      return ErrorKind::kIo;
  }
}

int errno_of_kind(ErrorKind k) {
  switch (k) {
    case ErrorKind::kInvalid:
      return EINVAL;
    case ErrorKind::kNotFound:
      return ENOENT;
    case ErrorKind::kPermission:
      return EPERM;
    case ErrorKind::kBusy:
      return EBUSY;
    case ErrorKind::kUnsupported:
      return EOPNOTSUPP;
    case ErrorKind::kCorrupt:
      return EIO;
    case ErrorKind::kProtocol:
      return EPROTO;
    case ErrorKind::kNoSpace:
      return ENOSPC;
    case ErrorKind::kTimedOut:
      return ETIMEDOUT;
    case ErrorKind::kIo:
      return EIO;
  }
  return EIO;
}

}  // namespace

Error::Error(ErrorKind kind, std::string message, int sys_errno)
    : kind_(kind), errno_(sys_errno), message_(std::move(message)) {}

std::string_view to_string(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalid:
      return "invalid";
    case ErrorKind::kNotFound:
      return "not-found";
    case ErrorKind::kPermission:
      return "permission";
    case ErrorKind::kBusy:
      return "busy";
    case ErrorKind::kUnsupported:
      return "unsupported";
    case ErrorKind::kCorrupt:
      return "corrupt";
    case ErrorKind::kProtocol:
      return "protocol";
    case ErrorKind::kNoSpace:
      return "no-space";
    case ErrorKind::kTimedOut:
      return "timed-out";
    case ErrorKind::kIo:
      return "io";
  }
  return "io";
}

Error Error::from_errno(int sys_errno, std::string_view what) {
  char buf[128];
  std::string message(what);
  message += ": ";
  message += strerror_r(sys_errno, buf, sizeof buf);
  return Error(kind_of_errno(sys_errno), std::move(message), sys_errno);
}

int Error::sys_errno() const { return errno_ != 0 ? errno_ : errno_of_kind(kind_); }

Error Error::context(std::string_view prefix) && {
  std::string message(prefix);
  message += ": ";
  message += message_;
  return Error(kind_, std::move(message), errno_);
}

}  // namespace vbdkit
