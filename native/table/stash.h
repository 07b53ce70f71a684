// Rows that found no place in the chunks of a partition's index: almost none, unless ids were made to
// collide.
#pragma once
#include <cstdint>
#include <unordered_map>

namespace satrap {

// Row numbers by mixed id. What may throw std::bad_alloc leaves it as it was.
class Stash {
 public:
  // The row number, or kNoRow.
  uint32_t find(uint64_t h) const;
  void insert(uint64_t h, uint32_t number) { rows_.emplace(h, number); }
  bool erase(uint64_t h) { return rows_.erase(h) != 0; }
  bool empty() const { return rows_.empty(); }
  void clear() { rows_.clear(); }
  // About what it takes: nodes and buckets.
  size_t bytes() const { return rows_.size() * 32 + (rows_.empty() ? 0 : rows_.bucket_count() * 8); }
  const std::unordered_map<uint64_t, uint32_t>& rows() const { return rows_; }

 private:
  std::unordered_map<uint64_t, uint32_t> rows_;
};

}  // namespace satrap
