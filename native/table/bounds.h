// What a bounded table keeps for each partition, and the rules that it follows. Every rule looks at one
// partition alone and at nothing but what was asked of it, in its order: so the rows that are left do not
// depend on how many threads, servers or requests the partitions are shared out to, and asking the same again
// gives the same rows.
//
//   capacity    a share for each partition, which it never exceeds. Where rows to be made find no room,
//   victims are
//               chosen and removed at once down to a low-water mark, so that it happens seldom.
//   recency     a mark is a coarse time of the last training pull, in units of 1/128 of the partition's
//   capacity in
//               rows made: the oldest go first.
//   frequency   a mark counts training pulls, up to 255, and is halved whenever as many rows have been made
//   as the
//               partition holds: the least go first.
//   expiry      a mark is the age of a row in units of 1/32 of its time to live, as of the partition's last
//   sweep; 255:
//               used since. Whenever the partition's clock reaches the next unit, a sweep ages all rows and
//               removes those that are too old.
//   admission   an id without a row gets one when a sketch has counted so many sightings of it.
//
// Equals go in the order of the mixed id's lower half, which is none that users know and the same in every
// history; and none of the index, or new rows would crowd where the others stay.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "table/sketch.h"
#include "table/spec.h"
#include "table/view.h"

namespace satrap {

struct BoundCounts {
  uint64_t admitted = 0;  // rows made
  uint64_t evicted = 0;   // removed for others
  uint64_t expired = 0;
  uint64_t refused = 0;  // pulls of an id that got no row: not seen often enough, or no room
  BoundCounts& operator+=(const BoundCounts& o) {
    admitted += o.admitted, evicted += o.evicted, expired += o.expired, refused += o.refused;
    return *this;
  }
};

// A row that is to be removed.
struct Victim {
  uint64_t id;
  uint32_t number;
};

// Is handed rows just before they are removed, coldest first, values, state and marks still in place: where a
// lower tier takes them. Called under the table's lock by the thread that has the partition; may be called
// for different partitions at once. What it throws leaves all rows where they are.
using EvictionSink =
    std::function<void(uint32_t partition, const Victim* victims, const Row* rows, size_t n)>;

// Which rows a partition has removed by its own rules since somebody asked, for who copies what has changed.
struct Removals {
  std::vector<uint64_t> ids;
  bool lost = false;  // there are more than are kept, or marks can no more be told from those of then
};

// What somebody who copies a partition while it is used must be told of besides the ids that calls name.
struct Followed {
  static constexpr size_t kSweeps = 64;  // of a row that was not used for so long nothing is left
  Removals removed;                      // since it was taken
  std::vector<uint64_t> sweeps;          // the last ticks at which marks of expiry aged
};

struct PartitionBound {
  static constexpr uint64_t kUnset = ~uint64_t{0};
  uint64_t made = 0;       // rows so far: the clock of recency, and when to halve frequencies
  uint64_t step = 0;       // the last push's
  uint64_t tick = kUnset;  // unit of time that expiry marks are relative to
  BoundCounts counts;
  Sketch sketch;
  Removals removed;
  uint64_t swept = kUnset;             // `tick` of the first sweep since they were asked for
  std::unique_ptr<Followed> followed;  // null where nobody copies it
};

// Ids of removed rows that are kept: half as many as there are rows, and so many of few.
constexpr uint64_t kRemovedLeast = 1024;
constexpr uint8_t kUsed = 255;            // expiry: since the last sweep
constexpr uint8_t kFrequencyAtFirst = 2;  // not the least, so that a new row has the time to be seen again
constexpr uint64_t kRecencyUnits = 128, kExpiryUnits = 32;
// Rows go in batches of this part of a partition's share: each batch looks at all its rows. Rows that go to
// disk go in larger ones; which they are is no part of any result.
constexpr uint64_t kSlackParts = 32, kColdSlackParts = 16;
constexpr uint64_t kClampEvery = 64;  // units of recency
constexpr uint8_t kClampedAge = 160;  // kClampedAge + kClampEvery < 256: ages never wrap

inline uint64_t recency_unit(uint64_t share) { return std::max<uint64_t>(1, share / kRecencyUnits); }
inline uint64_t expiry_unit(const BoundSpec& b) { return (b.ttl + kExpiryUnits - 1) / kExpiryUnits; }
// Units that a row may age; one more, and more than the time to live has passed for certain.
inline uint64_t expiry_limit(const BoundSpec& b) { return (b.ttl + expiry_unit(b) - 1) / expiry_unit(b); }

}  // namespace satrap
