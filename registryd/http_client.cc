// SPDX-License-Identifier: LGPL-2.1-or-later
#include "registryd/http_client.h"

#include <curl/curl.h>

#include <algorithm>

namespace vbdkit::registryd {

namespace {

constexpr size_t kMaxAnswer = 64 << 20;  // bytes
constexpr long kConnectShare = 2;        // of the time may be spent on connecting

}  // namespace

struct HttpClient::Handle {
  CURL* curl = nullptr;
  curl_slist* headers = nullptr;
  std::string body;
  bool too_long = false;

  Handle() = default;
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    curl_easy_cleanup(curl);
    curl_slist_free_all(headers);
  }

  static size_t take(char* data, size_t size, size_t count, void* self) {
    auto& handle = *static_cast<Handle*>(self);
    const size_t n = size * count;
    handle.too_long = handle.body.size() + n > kMaxAnswer;
    if (handle.too_long) return 0;  // which ends the transfer
    handle.body.append(data, n);
    return n;
  }
};

HttpClient::HttpClient(std::unique_ptr<Handle> handle) : handle_(std::move(handle)) {}
HttpClient::HttpClient(HttpClient&&) noexcept = default;
HttpClient::~HttpClient() = default;

Result<HttpClient> HttpClient::create(const Tls& tls) {
  auto handle = std::make_unique<Handle>();
  handle->curl = curl_easy_init();
  handle->headers = curl_slist_append(nullptr, "Content-Type: application/json");
  if (handle->curl == nullptr || handle->headers == nullptr)
    return Error(ErrorKind::kIo, "libcurl cannot be used");
  CURL* const curl = handle->curl;
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, handle->headers);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, Handle::take);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, handle.get());
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_TCP_NODELAY, 1L);
  // Where a lease is at stake nobody stands between: no proxy from the environment.
  curl_easy_setopt(curl, CURLOPT_PROXY, "");
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  if (!tls.ca.empty()) curl_easy_setopt(curl, CURLOPT_CAINFO, tls.ca.c_str());
  if (!tls.certificate.empty()) curl_easy_setopt(curl, CURLOPT_SSLCERT, tls.certificate.c_str());
  if (!tls.key.empty()) curl_easy_setopt(curl, CURLOPT_SSLKEY, tls.key.c_str());
  return HttpClient(std::move(handle));
}

Result<HttpAnswer> HttpClient::post(const std::string& url, std::string_view body,
                                    std::chrono::milliseconds timeout) {
  CURL* const curl = handle_->curl;
  handle_->body.clear();
  handle_->too_long = false;
  const long ms = std::max(1L, static_cast<long>(timeout.count()));
  curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
  curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body.data());
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, ms);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, std::max(1L, ms / kConnectShare));
  const CURLcode code = curl_easy_perform(curl);
  if (handle_->too_long)
    return Error(ErrorKind::kProtocol,
                 url + ": an answer of more than " + std::to_string(kMaxAnswer) + " bytes");
  if (code != CURLE_OK)
    return Error(code == CURLE_OPERATION_TIMEDOUT ? ErrorKind::kTimedOut : ErrorKind::kIo,
                 url + ": " + curl_easy_strerror(code));
  HttpAnswer answer;
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &answer.status);
  answer.body = std::move(handle_->body);
  return answer;
}

}  // namespace vbdkit::registryd
