// Memory for tables: large regions on huge pages, cut into blocks, given back only with the arena.
#pragma once
#include <atomic>
#include <cstddef>
#include <map>
#include <mutex>
#include <vector>

namespace satrap {

// Hands out 64-byte-aligned blocks. Pages are touched only as blocks are used, so memory follows occupancy.
// Thread-safe. Freed blocks serve later requests of the same size. `allocate` throws std::bad_alloc.
class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  char* allocate(size_t bytes);
  void release(char* block, size_t bytes) noexcept;

  // Bytes handed out. Beyond `limit` there are none.
  size_t held() const { return held_.load(std::memory_order_relaxed); }
  void set_limit(size_t bytes) { limit_.store(bytes, std::memory_order_relaxed); }

 private:
  struct Region {
    char* base;
    size_t bytes;
  };
  std::mutex mutex_;
  std::vector<Region> regions_;
  char* next_ = nullptr;
  size_t left_ = 0;
  std::atomic<size_t> held_{0}, limit_{~size_t{0}};
  std::map<size_t, char*> free_;  // by size, a list: each freed block begins with the address of the next
};

// An array that grows without moving its full blocks. Elements are `element_bytes` apart, 2^shift to a block;
// the first block is small at first and doubles, so an almost empty list costs almost nothing.
class BlockList {
 public:
  void configure(Arena* arena, size_t element_bytes, size_t block_bytes);
  ~BlockList() { clear(); }
  BlockList() = default;
  BlockList(const BlockList&) = delete;
  BlockList& operator=(const BlockList&) = delete;

  // Makes room for n elements; new memory is zero only where it comes fresh from the system. On
  // std::bad_alloc nothing has changed.
  void reserve(size_t n);
  void clear();
  void swap(BlockList& other) noexcept;

  char* at(size_t i) const { return blocks_[i >> shift_] + (i & mask_) * element_bytes_; }
  char* const* blocks() const { return blocks_.data(); }
  size_t capacity() const { return capacity_; }
  size_t bytes() const { return capacity_ * element_bytes_; }
  int shift() const { return shift_; }

 private:
  size_t block_bytes() const { return (mask_ + 1) * element_bytes_; }
  Arena* arena_ = nullptr;
  std::vector<char*> blocks_;
  size_t element_bytes_ = 0, mask_ = 0, capacity_ = 0;
  int shift_ = 0;
};

}  // namespace satrap
