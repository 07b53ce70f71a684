// A fixed number of threads that share out numbered tasks. No spinning: idle threads sleep.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace satrap {

// `run(n, task)` calls task(0) … task(n - 1), each once, on the pool's threads and the caller's, and returns
// when all are done. The first exception of a task is rethrown after the others have ended. Calls from
// several threads take turns. `threads` counts the caller: 1 means no other thread is started.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  void run(size_t tasks, const std::function<void(size_t)>& task);
  int threads() const { return static_cast<int>(workers_.size()) + 1; }

 private:
  void work();
  void drain();

  std::vector<std::thread> workers_;
  std::mutex turn_;  // held for one run
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(size_t)>* task_ = nullptr;
  std::atomic<size_t> next_{0};
  size_t tasks_ = 0;
  size_t generation_ = 0;
  int busy_ = 0;
  bool stop_ = false;
  std::exception_ptr error_;
};

}  // namespace satrap
