// Where the cold rows of one partition are: slots in the table's file by mixed id, in 9 to 10 bytes a row.
//
// Ids are not kept, only 32 bits of the mixed id below those of the partition (x): so a slot found may be
// another id's, and who reads the record there sees which. Buckets lie in the order of x, and a bucket is
// four cache lines:
//
//   slot[36]   u32
//   tag[36]    the low 24 bits of x; the bucket says the rest, which needs 256 buckets or more
//   count, overflow   slots used; rows that found the bucket full and are in the stash (255: or more, for
//   ever)
#pragma once
#include <cstdint>
#include <unordered_map>
#include <utility>

#include "base/arena.h"

namespace satrap {

class ColdIndex {
 public:
  static constexpr uint32_t kNone = ~uint32_t{0};

  void configure(Arena* arena, int partition_bits);
  ColdIndex() = default;
  ColdIndex(const ColdIndex&) = delete;
  ColdIndex& operator=(const ColdIndex&) = delete;

  uint64_t size() const { return size_; }
  uint64_t bytes() const { return buckets_.bytes() + stash_.size() * 32; }

  // Calls visit(slot) for every slot that may be that of mixed id h, until one returns true.
  template <typename Visit>
  void find(uint64_t h, Visit&& visit) const {
    if (size_ == 0) return;
    const uint32_t x = key_of(h);
    const Bucket& b = bucket(home(x));
    for (uint32_t k = 0; k < b.count; ++k)
      if (b.tag_at(k) == (x & kTagMask) && visit(b.slot[k])) return;
    if (b.overflow == 0) return;
    const auto [first, last] = stash_.equal_range(x);
    for (auto it = first; it != last; ++it)
      if (visit(it->second)) return;
  }
  // Asks for the line in which a search for h begins.
  void prefetch(uint64_t h) const {
    if (size_ != 0) __builtin_prefetch(&bucket(home(key_of(h))));
  }

  // Makes room for n more. This and `insert` throw std::bad_alloc and leave all as it was.
  void reserve(uint64_t n);
  void insert(uint64_t h, uint32_t slot);
  // Exactly this slot, entered under h: false where it is not there.
  bool erase(uint64_t h, uint32_t slot);
  bool replace(uint64_t h, uint32_t slot, uint32_t with);
  bool holds(uint64_t h, uint32_t slot) const;
  void clear();

 private:
  static constexpr uint32_t kSlots = 36, kTagMask = 0xFFFFFF, kLeast = 256;
  static constexpr size_t kBlockBytes = size_t{64} << 10;
  struct alignas(64) Bucket {
    uint32_t slot[kSlots];
    uint8_t tag[kSlots][3];
    uint8_t count, overflow, spare[2];
    uint32_t tag_at(uint32_t k) const { return tag[k][0] | tag[k][1] << 8 | tag[k][2] << 16; }
    void set(uint32_t k, uint32_t x, uint32_t number) {
      slot[k] = number;
      tag[k][0] = static_cast<uint8_t>(x), tag[k][1] = static_cast<uint8_t>(x >> 8);
      tag[k][2] = static_cast<uint8_t>(x >> 16);
    }
  };
  static_assert(sizeof(Bucket) == 256);
  using Stash = std::unordered_multimap<uint32_t, uint32_t>;

  uint32_t key_of(uint64_t h) const { return static_cast<uint32_t>((h << partition_bits_) >> 32); }
  uint32_t home(uint32_t x) const { return static_cast<uint32_t>(uint64_t{x} * count_ >> 32); }
  Bucket& bucket(uint32_t i) const { return *reinterpret_cast<Bucket*>(buckets_.at(i)); }
  void grow(uint32_t count);
  static void enter(const BlockList& buckets, uint32_t count, Stash& stash, uint32_t x, uint32_t slot);
  uint32_t* place_of(uint64_t h, uint32_t slot);

  Arena* arena_ = nullptr;
  int partition_bits_ = 0;
  BlockList buckets_;
  uint32_t count_ = 0;
  uint64_t size_ = 0;
  Stash stash_;
};

}  // namespace satrap
