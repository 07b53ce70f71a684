#include "base/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace satrap {
namespace {
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kRegion = size_t{64} << 20;
}  // namespace

Arena::~Arena() {
  for (const Region& r : regions_) munmap(r.base, r.bytes);
}

char* Arena::allocate(size_t bytes) {
  bytes = (bytes + 63) & ~size_t{63};
  std::lock_guard lock(mutex_);
  if (held() + bytes > limit_.load(std::memory_order_relaxed)) throw std::bad_alloc();
  char*& freed = free_[bytes];  // may throw, here and not in release
  if (freed != nullptr) {
    char* block = freed;
    std::memcpy(&freed, block, sizeof freed);
    held_ += bytes;
    return block;
  }
  if (bytes > left_) {
    // One more huge page is mapped so that the region can start on a huge-page boundary.
    size_t size = std::max(kRegion, (bytes + kHugePage - 1) & ~(kHugePage - 1)) + kHugePage;
    regions_.reserve(regions_.size() + 1);
    void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    regions_.push_back({static_cast<char*>(p), size});
    auto start = (reinterpret_cast<uintptr_t>(p) + kHugePage - 1) & ~(kHugePage - 1);
    next_ = reinterpret_cast<char*>(start);
    left_ = size - (start - reinterpret_cast<uintptr_t>(p));
    madvise(next_, left_, MADV_HUGEPAGE);  // advice: without huge pages everything still works, slower
  }
  char* block = next_;
  next_ += bytes;
  left_ -= bytes;
  held_ += bytes;
  return block;
}

void Arena::release(char* block, size_t bytes) noexcept {
  bytes = (bytes + 63) & ~size_t{63};
  std::lock_guard lock(mutex_);
  char*& freed = free_.find(bytes)->second;
  std::memcpy(block, &freed, sizeof freed);
  freed = block;
  held_ -= bytes;
}

void BlockList::configure(Arena* arena, size_t element_bytes, size_t block_bytes) {
  arena_ = arena;
  element_bytes_ = element_bytes;
  size_t per_block = std::bit_floor(std::max<size_t>(block_bytes / element_bytes, 1));
  mask_ = per_block - 1;
  shift_ = std::countr_zero(per_block);
}

void BlockList::reserve(size_t n) {
  if (n <= capacity_) return;
  size_t per_block = mask_ + 1;
  if (capacity_ < per_block) {
    // The first block comes from the heap while it is small: tables of a few rows must stay small.
    if (blocks_.empty()) blocks_.push_back(nullptr);  // may throw, so before there is a block to lose
    size_t want = std::min(per_block, std::bit_ceil(n));
    char* grown =
        want == per_block
            ? arena_->allocate(block_bytes())
            : static_cast<char*>(std::aligned_alloc(64, (want * element_bytes_ + 63) & ~size_t{63}));
    if (grown == nullptr) throw std::bad_alloc();
    if (blocks_[0] != nullptr) {
      std::memcpy(grown, blocks_[0], capacity_ * element_bytes_);
      std::free(blocks_[0]);
    }
    blocks_[0] = grown;
    capacity_ = want;
  }
  while (capacity_ < n) {
    blocks_.reserve(blocks_.size() + 1);
    blocks_.push_back(arena_->allocate(block_bytes()));
    capacity_ += per_block;
  }
}

void BlockList::swap(BlockList& other) noexcept {
  std::swap(arena_, other.arena_);
  std::swap(blocks_, other.blocks_);
  std::swap(element_bytes_, other.element_bytes_);
  std::swap(mask_, other.mask_);
  std::swap(capacity_, other.capacity_);
  std::swap(shift_, other.shift_);
}

void BlockList::clear() {
  if (blocks_.empty()) return;
  if (capacity_ <= mask_) {
    std::free(blocks_[0]);
  } else {
    for (char* b : blocks_) arena_->release(b, block_bytes());
  }
  blocks_.clear();
  capacity_ = 0;
}

}  // namespace satrap
