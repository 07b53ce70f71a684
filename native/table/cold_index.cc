#include "table/cold_index.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace satrap {

void ColdIndex::configure(Arena* arena, int partition_bits) {
  arena_ = arena;
  partition_bits_ = partition_bits;
  buckets_.configure(arena, sizeof(Bucket), kBlockBytes);
}

void ColdIndex::enter(const BlockList& buckets, uint32_t count, Stash& stash, uint32_t x, uint32_t slot) {
  Bucket& b = *reinterpret_cast<Bucket*>(buckets.at(static_cast<uint32_t>(uint64_t{x} * count >> 32)));
  if (b.count < kSlots) {
    b.set(b.count++, x, slot);
    return;
  }
  stash.emplace(x, slot);  // may throw, so before anything has changed
  if (b.overflow != 255) ++b.overflow;
}

// Four fifths full at most, and then grown by an eighth: see Table::grow_index.
void ColdIndex::reserve(uint64_t n) {
  const uint64_t want = (size_ + n) * 5 / (4 * kSlots) + 1;
  if (want > uint64_t{1} << 31) throw std::bad_alloc();
  if (want > count_) grow(static_cast<uint32_t>(std::max<uint64_t>({want, count_ + count_ / 8, kLeast})));
}

void ColdIndex::grow(uint32_t count) {
  BlockList grown;
  Stash stash;
  grown.configure(arena_, sizeof(Bucket), kBlockBytes);
  grown.reserve(count);
  for (uint32_t i = 0; i < count; ++i) std::memset(grown.at(i), 0, sizeof(Bucket));
  for (uint32_t i = 0; i < count_; ++i) {
    const Bucket& b = bucket(i);
    // The first x of this bucket; the others lie within 2^24 behind it, so that 24 bits name them.
    const auto first = static_cast<uint32_t>(((uint64_t{i} << 32) + count_ - 1) / count_);
    for (uint32_t k = 0; k < b.count; ++k)
      enter(grown, count, stash, first + ((b.tag_at(k) - first) & kTagMask), b.slot[k]);
  }
  for (const auto& [x, slot] : stash_) enter(grown, count, stash, x, slot);
  buckets_.swap(grown);
  stash_.swap(stash);
  count_ = count;
}

void ColdIndex::insert(uint64_t h, uint32_t slot) {
  reserve(1);
  enter(buckets_, count_, stash_, key_of(h), slot);
  ++size_;
}

uint32_t* ColdIndex::place_of(uint64_t h, uint32_t slot) {
  if (size_ == 0) return nullptr;
  const uint32_t x = key_of(h);
  Bucket& b = bucket(home(x));
  for (uint32_t k = 0; k < b.count; ++k)
    if (b.slot[k] == slot && b.tag_at(k) == (x & kTagMask)) return &b.slot[k];
  if (b.overflow == 0) return nullptr;
  const auto [first, last] = stash_.equal_range(x);
  for (auto it = first; it != last; ++it)
    if (it->second == slot) return &it->second;
  return nullptr;
}

bool ColdIndex::replace(uint64_t h, uint32_t slot, uint32_t with) {
  uint32_t* place = place_of(h, slot);
  if (place == nullptr) return false;
  *place = with;
  return true;
}

bool ColdIndex::holds(uint64_t h, uint32_t slot) const {
  bool found = false;
  find(h, [&](uint32_t s) { return found = s == slot; });
  return found;
}

bool ColdIndex::erase(uint64_t h, uint32_t slot) {
  if (size_ == 0) return false;
  const uint32_t x = key_of(h);
  Bucket& b = bucket(home(x));
  for (uint32_t k = 0; k < b.count; ++k) {
    if (b.slot[k] != slot || b.tag_at(k) != (x & kTagMask)) continue;
    const uint32_t last = --b.count;
    b.slot[k] = b.slot[last];
    std::memcpy(b.tag[k], b.tag[last], 3);
    --size_;
    return true;
  }
  if (b.overflow == 0) return false;
  const auto [first, end] = stash_.equal_range(x);
  for (auto it = first; it != end; ++it) {
    if (it->second != slot) continue;
    stash_.erase(it);
    if (b.overflow != 255) --b.overflow;
    --size_;
    return true;
  }
  return false;
}

void ColdIndex::clear() {
  buckets_.clear();
  stash_.clear();
  count_ = 0;
  size_ = 0;
}

}  // namespace satrap
