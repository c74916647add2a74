// SPDX-License-Identifier: LGPL-2.1-or-later
//
// HttpClient: POST requests by libcurl, over connections that are kept. An answer larger than the
// limit is an error, whatever the server says of its size. Blocks until the answer or the deadline;
// one thread. curl_global_init(3) is for main to call.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace vbdkit::registryd {

struct HttpAnswer {
  long status = 0;
  std::string body;
};

class HttpClient {
 public:
  struct Tls {
    std::string ca;           // file with the certificates that are trusted; empty: the system's
    std::string certificate;  // ours
    std::string key;
  };

  static Result<HttpClient> create(const Tls& tls);
  HttpClient(HttpClient&&) noexcept;
  HttpClient& operator=(HttpClient&&) = delete;
  ~HttpClient();

  Result<HttpAnswer> post(const std::string& url, std::string_view body,
                          std::chrono::milliseconds timeout);

 private:
  struct Handle;
  explicit HttpClient(std::unique_ptr<Handle> handle);
  std::unique_ptr<Handle> handle_;
};

}  // namespace vbdkit::registryd
