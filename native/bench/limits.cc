// What the machine can do: moving rows of a table by known index, with nothing in between.
//
// `benchmarks.limits` compiles this file on demand and calls it through ctypes; it is no part of the library.
// Rows are packed side by side in one huge-page mapping, and `rows[i]` says which one comes next, so a loop
// knows its addresses as far ahead as it likes. `distance` is how many rows ahead it prefetches (0: not at
// all); the caller sweeps it.
//
// Work is cut as a store sees it: batch after batch, the threads sharing each batch and writing to (or
// reading from) the same dense buffer of one batch. Threads do not wait for each other between batches, which
// a store must: a limit may be a little out of reach.

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kLine = 64;

struct Job {
  char* table;
  const std::int64_t* rows;  // [count]
  std::size_t count;
  std::size_t batch;  // rows of one batch: the dense buffer is [batch, dim]
  std::size_t distance;
  float* dense;
};

// Runs `move(row, dense row)` over the share of thread `t` of `threads`, prefetching ahead.
template <std::size_t Bytes, bool Write, class Move>
void walk(const Job& job, std::size_t dim, std::size_t t, std::size_t threads, Move move) {
  for (std::size_t start = 0; start < job.count; start += job.batch) {
    const std::size_t size = std::min(job.batch, job.count - start);
    const std::size_t begin = start + size * t / threads, end = start + size * (t + 1) / threads;
    const auto prefetch = [&](std::size_t i) {
      const char* row = job.table + static_cast<std::size_t>(job.rows[i]) * Bytes;
      for (std::size_t at = 0; at < Bytes; at += kLine) __builtin_prefetch(row + at, Write ? 1 : 0, 3);
    };
    for (std::size_t i = begin; i < std::min(end, begin + job.distance); ++i) prefetch(i);
    for (std::size_t i = begin; i < end; ++i) {
      if (job.distance != 0 && i + job.distance < end) prefetch(i + job.distance);
      move(job.table + static_cast<std::size_t>(job.rows[i]) * Bytes, job.dense + (i - start) * dim);
    }
  }
}

template <class Work>
void on_threads(std::size_t threads, Work work) {
  std::vector<std::thread> others;
  for (std::size_t t = 1; t < threads; ++t) others.emplace_back([&work, t] { work(t); });
  work(std::size_t{0});
  for (auto& other : others) other.join();
}

template <std::size_t Dim, class Value>
void gather(const Job& job, std::size_t threads) {
  on_threads(threads, [&](std::size_t t) {
    walk<Dim * sizeof(Value), false>(job, Dim, t, threads, [](const char* row, float* out) {
      const auto* values = reinterpret_cast<const Value*>(row);
      for (std::size_t d = 0; d < Dim; ++d) out[d] = static_cast<float>(values[d]);
    });
  });
}

// values += constant: reads and writes the rows and touches nothing else.
template <std::size_t Dim, class Value>
void add_constant(const Job& job, std::size_t threads) {
  on_threads(threads, [&](std::size_t t) {
    walk<Dim * sizeof(Value), true>(job, Dim, t, threads, [](char* row, const float*) {
      auto* values = reinterpret_cast<Value*>(row);
      for (std::size_t d = 0; d < Dim; ++d)
        values[d] = static_cast<Value>(static_cast<float>(values[d]) + 1e-3F);
    });
  });
}

// values -= 1e-3 gradient: as above, and streams one gradient a row, as every optimizer must.
template <std::size_t Dim, class Value>
void add_gradient(const Job& job, std::size_t threads) {
  on_threads(threads, [&](std::size_t t) {
    walk<Dim * sizeof(Value), true>(job, Dim, t, threads, [](char* row, const float* gradient) {
      auto* values = reinterpret_cast<Value*>(row);
      for (std::size_t d = 0; d < Dim; ++d) {
        values[d] = static_cast<Value>(static_cast<float>(values[d]) - 1e-3F * gradient[d]);
      }
    });
  });
}

enum Operation : int { kGather = 0, kAddConstant = 1, kAddGradient = 2 };

template <std::size_t Dim, class Value>
int run(int operation, const Job& job, std::size_t threads) {
  switch (operation) {
    case kGather:
      gather<Dim, Value>(job, threads);
      return 0;
    case kAddConstant:
      add_constant<Dim, Value>(job, threads);
      return 0;
    case kAddGradient:
      add_gradient<Dim, Value>(job, threads);
      return 0;
    default:
      return 1;
  }
}

template <class Value>
int run_dim(std::size_t dim, int operation, const Job& job, std::size_t threads) {
  switch (dim) {
    case 16:
      return run<16, Value>(operation, job, threads);
    case 64:
      return run<64, Value>(operation, job, threads);
    case 128:
      return run<128, Value>(operation, job, threads);
    default:
      return 2;
  }
}

}  // namespace

extern "C" {

// Memory on huge pages where the kernel grants them, not touched yet; null when there is none.
void* limits_map(std::size_t bytes) {
  void* memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  madvise(memory, bytes, MADV_HUGEPAGE);
  return memory;
}

void limits_unmap(void* memory, std::size_t bytes) { munmap(memory, bytes); }

// 0 when done; 1 for an unknown operation, 2 for an unknown dim, 3 for an unknown value size (1: int8, 2:
// fp16, 4: fp32).
int limits_run(int operation, void* table, std::size_t dim, std::size_t value_bytes, const std::int64_t* rows,
               std::size_t count, std::size_t batch, float* dense, std::size_t distance,
               std::size_t threads) {
  const Job job{static_cast<char*>(table), rows, count, batch, distance, dense};
  if (value_bytes == 4) return run_dim<float>(dim, operation, job, threads);
  if (value_bytes == 2) return run_dim<_Float16>(dim, operation, job, threads);
  if (value_bytes == 1) return run_dim<std::int8_t>(dim, operation, job, threads);
  return 3;
}

}  // extern "C"
