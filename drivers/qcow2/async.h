// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Coroutines for the slow ways of a layer: allocation, metadata, flush. Task is a coroutine that
// another one awaits, Detached one that runs by itself. What wakes a coroutine puts it in the
// layer's ReadyQueue, which resumes in the order of waking and never recursively, so that the stack
// stays flat however many requests wait for one event.
// Thread: the reactor of the layer. No exceptions: one that escapes ends the process.
#pragma once

#include <coroutine>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace vbdkit::drivers::qcow2 {

class ReadyQueue {
 public:
  void push(std::coroutine_handle<> h) { state_->queue.push_back(h); }

  // Every entry from outside (a call, a completion) is one; the outermost resumes what was woken.
  // It may outlive the queue: the completion of a layer's last request may end the layer.
  class Scope {
   public:
    explicit Scope(ReadyQueue& queue) : state_(queue.state_) { ++state_->depth; }
    ~Scope() {
      if (state_->depth == 1) {
        while (!state_->queue.empty()) {
          const std::coroutine_handle<> h = state_->queue.front();
          state_->queue.pop_front();
          h.resume();
        }
      }
      --state_->depth;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    friend class ReadyQueue;
    struct State {
      std::deque<std::coroutine_handle<>> queue;
      unsigned depth = 0;
    };
    const std::shared_ptr<State> state_;
  };

 private:
  std::shared_ptr<Scope::State> state_ = std::make_shared<Scope::State>();
};

namespace detail {

// Who awaits a task runs it inside its own await_suspend(). A task that ends there lets it go on by
// returning; only one that ends later resumes it. So the stack does not grow with the number of
// tasks awaited one after another.
struct PromiseBase {
  std::coroutine_handle<> continuation;
  bool ended = false;
  bool awaited_later = false;

  struct FinalAwaiter {
    bool await_ready() const noexcept { return false; }
    template <typename Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> h) const noexcept {
      Promise& promise = h.promise();
      promise.ended = true;
      if (!promise.awaited_later) return std::noop_coroutine();
      return promise.continuation;
    }
    void await_resume() const noexcept {}
  };

  std::suspend_always initial_suspend() const noexcept { return {}; }
  FinalAwaiter final_suspend() const noexcept { return {}; }
  [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
};

}  // namespace detail

// Starts when it is awaited; await it once.
template <typename T>
class [[nodiscard]] Task {
 public:
  struct promise_type : detail::PromiseBase {
    std::optional<T> value;
    Task get_return_object() {
      return Task(std::coroutine_handle<promise_type>::from_promise(*this));
    }
    void return_value(T v) { value.emplace(std::move(v)); }
  };

  Task(Task&& o) noexcept : handle_(std::exchange(o.handle_, nullptr)) {}
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (handle_) handle_.destroy();
  }

  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> awaiting) {
    promise_type& promise = handle_.promise();
    promise.continuation = awaiting;
    handle_.resume();
    promise.awaited_later = !promise.ended;
    return promise.awaited_later;
  }
  T await_resume() { return std::move(*handle_.promise().value); }

 private:
  explicit Task(std::coroutine_handle<promise_type> h) : handle_(h) {}
  std::coroutine_handle<promise_type> handle_;
};

// Runs at once and owns itself.
struct Detached {
  struct promise_type {
    Detached get_return_object() const noexcept { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
  };
};

// Coroutines that wait for one event. co_await waiters.wait(); then look again whether it happened.
class Waiters {
 public:
  explicit Waiters(ReadyQueue& ready) : ready_(ready) {}

  struct Awaiter {
    Waiters& waiters;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> h) { waiters.waiting_.push_back(h); }
    void await_resume() const noexcept {}
  };
  Awaiter wait() { return Awaiter{*this}; }

  void wake_all() {
    for (const std::coroutine_handle<> h : waiting_) ready_.push(h);
    waiting_.clear();
  }

 private:
  ReadyQueue& ready_;
  std::vector<std::coroutine_handle<>> waiting_;
};

// Runs tasks side by side; the result is the first error among theirs.
class Group {
 public:
  explicit Group(ReadyQueue& ready) : ready_(ready) {}
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  void start(Task<int> task) {
    ++running_;
    run(*this, std::move(task));
  }

  struct Awaiter {
    Group& group;
    bool await_ready() const noexcept { return group.running_ == 0; }
    void await_suspend(std::coroutine_handle<> h) { group.waiting_ = h; }
    int await_resume() const noexcept { return group.error_; }
  };
  // All that were started have ended, when this returns.
  Awaiter join() { return Awaiter{*this}; }

 private:
  static Detached run(Group& group, Task<int> task) {
    const int error = co_await task;
    if (group.error_ == 0) group.error_ = error;
    if (--group.running_ == 0 && group.waiting_) group.ready_.push(group.waiting_);
  }

  ReadyQueue& ready_;
  std::coroutine_handle<> waiting_;
  unsigned running_ = 0;
  int error_ = 0;
};

// So many units, lent out in the order of asking; who asks for more than there are gets all.
class Budget {
 public:
  Budget(ReadyQueue& ready, uint64_t total) : ready_(ready), total_(total), free_(total) {}

  class Loan {
   public:
    Loan(Budget& budget, uint64_t amount) : budget_(&budget), amount_(amount) {}
    Loan(Loan&& o) noexcept : budget_(o.budget_), amount_(std::exchange(o.amount_, 0)) {}
    Loan& operator=(Loan&&) = delete;
    ~Loan() {
      if (amount_ > 0) budget_->give_back(amount_);
    }

   private:
    Budget* budget_;
    uint64_t amount_;
  };

  struct Awaiter {
    Budget& budget;
    uint64_t amount;
    bool await_ready() {
      if (!budget.waiting_.empty() || budget.free_ < amount) return false;
      budget.free_ -= amount;
      return true;
    }
    void await_suspend(std::coroutine_handle<> h) { budget.waiting_.push_back({h, amount}); }
    Loan await_resume() { return Loan(budget, amount); }
  };
  Awaiter take(uint64_t amount) { return Awaiter{*this, amount < total_ ? amount : total_}; }

 private:
  struct Waiting {
    std::coroutine_handle<> handle;
    uint64_t amount;
  };

  void give_back(uint64_t amount) {
    free_ += amount;
    while (!waiting_.empty() && waiting_.front().amount <= free_) {
      free_ -= waiting_.front().amount;
      ready_.push(waiting_.front().handle);
      waiting_.pop_front();
    }
  }

  ReadyQueue& ready_;
  const uint64_t total_;
  uint64_t free_;
  std::deque<Waiting> waiting_;
};

}  // namespace vbdkit::drivers::qcow2
