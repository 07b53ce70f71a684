// Out of memory at every place where the table asks for some: it must stay as it was, and go on when there is
// more.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "rows.h"

#if defined(__SANITIZE_THREAD__)
#define SATRAP_NO_FAULTS  // the thread sanitizer must see mmap and malloc itself
#endif

namespace {
// Requests until one fails; negative: none does.
std::atomic<long> requests_left{-1};

bool refuse() {
  if (requests_left.load(std::memory_order_relaxed) < 0) return false;
  return requests_left.fetch_sub(1, std::memory_order_relaxed) == 0;
}
}  // namespace

#if !defined(SATRAP_NO_FAULTS)
void* operator new(size_t n) {
  void* p = refuse() ? nullptr : std::malloc(n == 0 ? 1 : n);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

// The executable's own definitions come before the C library's.
extern "C" void* aligned_alloc(size_t alignment, size_t n) noexcept {
  void* p = nullptr;
  return refuse() || posix_memalign(&p, alignment, n) != 0 ? nullptr : p;
}
#endif

namespace satrap {
namespace test {
namespace {

#if !defined(SATRAP_NO_FAULTS)
// True when the call ran out of memory.
template <typename Call>
bool fails(long after, Call&& call) {
  requests_left = after;
  bool failed = false;
  try {
    call();
  } catch (const std::bad_alloc&) {
    failed = true;
  }
  requests_left = -1;
  return failed;
}

// Creates rows one by one; each creation is tried with its first, second, … request refused until it
// succeeds.
void grow_under_faults(uint32_t dim, OptimizerKind kind, uint64_t count) {
  Arena arena;
  Table t(spec_of(dim, ValueFormat::kFp32, kind), 0, &arena);
  uint64_t refused = 0;
  for (uint64_t id = 0; id < count; ++id) {
    for (long after = 0; fails(after, [&] { t.find_or_create(id); }); ++after) {
      ++refused;
      CHECK(!t.find(id));
      CHECK_EQUAL(t.size().rows, id);
      CHECK(after < 20);
      for (uint64_t k = id > 3 ? id - 3 : 0; k < id; ++k)
        CHECK(bool{t.find(k)} && values_of(t.find(k))[dim - 1] == static_cast<float>(k));
    }
    values_of(t.find(id))[dim - 1] = static_cast<float>(id);
    if (id % 500 == 0) check_index(t);
  }
  CHECK(refused > 5);
  for (uint64_t id = 0; id < count; ++id)
    CHECK(bool{t.find(id)} && values_of(t.find(id))[dim - 1] == static_cast<float>(id));
  // Erasing asks for memory too: to note the row number that is free.
  refused = 0;
  for (uint64_t id = 0; id < count; ++id)
    for (long after = 0; fails(after, [&] { t.erase(id); }); ++after) {
      ++refused;
      CHECK(bool{t.find(id)});
      CHECK_EQUAL(t.size().rows, count - id);
    }
  CHECK(refused > 5);
  check_index(t);
  CHECK_EQUAL(t.size().rows, 0u);
}

TEST(a_table_that_runs_out_of_memory_is_as_it_was_and_goes_on) {
  grow_under_faults(3, OptimizerKind::kSgd, 4000);
  grow_under_faults(1000, OptimizerKind::kAdam, 150);
}
#endif

}  // namespace
}  // namespace test
}  // namespace satrap
