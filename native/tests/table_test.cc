// The table against a map: ids that collide in every way the index knows, growth, erasure, order.
#include <algorithm>
#include <random>
#include <unordered_map>

#include "rows.h"

using namespace satrap;
using namespace satrap::test;

namespace {

// Creates the row of an id and writes what only this id would have.
Row put(Table& t, uint64_t id) {
  CHECK(!t.find(id));
  const Row row = t.find_or_create(id);
  CHECK(row == t.find(id));
  for (uint32_t j = 0; j < t.layout().dim; ++j)
    values_of(row)[j] = static_cast<float>(static_cast<uint32_t>(id * 31 + j) >> 9);
  return row;
}

bool holds(const Table& t, uint64_t id) {
  const Row row = t.find(id);
  if (!row) return false;
  for (uint32_t j = 0; j < t.layout().dim; ++j)
    if (values_of(row)[j] != static_cast<float>(static_cast<uint32_t>(id * 31 + j) >> 9)) return false;
  return true;
}

TEST(mix_is_a_bijection_and_its_values_are_pinned) {
  // Files keep rows in the order of mix: another mix would silently cut old checkpoints into wrong
  // partitions.
  CHECK_EQUAL(mix(0), 0u);
  CHECK_EQUAL(mix(1), 0x4179B061E0C0E0D0ull);
  CHECK_EQUAL(mix(~uint64_t{0}), 0x448E29CED4103459ull);
  CHECK_EQUAL(mix(uint64_t{1} << 63), 0x72446BBCF6C799D7ull);
  std::mt19937_64 random(1);
  for (int i = 0; i < 10000; ++i) {
    const uint64_t x = random();
    CHECK_EQUAL(unmix(mix(x)), x);
    CHECK_EQUAL(mix(unmix(x)), x);
  }
}

// Flaw 4: ids were merged (prefixes, a modulo). Here an entry and its place together are the whole id.
TEST(ids_that_differ_in_one_bit_of_their_mix_are_different_rows) {
  for (int bits : {0, 6, 16}) {
    Arena arena;
    Table t(spec_of(2), bits, &arena);
    const uint64_t base = 0x0123456789ABCDEFull;
    std::vector<uint64_t> ids = {id_of(base)};
    for (int b = 0; b < 64; ++b) ids.push_back(id_of(base ^ (uint64_t{1} << b)));
    for (uint64_t id : ids) put(t, id);
    check_index(t);
    for (uint64_t gone : ids) {
      CHECK(t.erase(gone));
      for (uint64_t id : ids) CHECK_EQUAL(holds(t, id), id != gone);
      put(t, gone);
    }
  }
}

TEST(ids_zero_and_all_ones_and_their_neighbours_are_rows_like_others) {
  Arena arena;
  Table t(spec_of(1), 6, &arena);
  const uint64_t ids[] = {0, 1, ~uint64_t{0}, ~uint64_t{0} - 1, uint64_t{1} << 63, (uint64_t{1} << 63) - 1};
  for (uint64_t id : ids) CHECK(!t.find(id));
  for (uint64_t id : ids) put(t, id);
  for (uint64_t id : ids) CHECK(holds(t, id));
  CHECK(t.erase(0));
  CHECK(!t.find(0));
  CHECK(holds(t, ~uint64_t{0}));
  check_index(t);
}

// All rows have one home chunk: every chunk behind it overflows, its counter saturates at 255, (with the last
// chunk as home) the search wraps, and most rows go to the stash. Growth cannot spread them.
void crowd(uint64_t top, int bits, uint64_t count) {
  Arena arena;
  Table t(spec_of(1), bits, &arena);
  std::vector<uint64_t> ids;
  for (uint64_t i = 0; i < count; ++i) ids.push_back(id_of(top | i));
  for (uint64_t id : ids) put(t, id);
  for (uint64_t id : ids) CHECK(holds(t, id));
  for (uint64_t i = 0; i < count; ++i) CHECK(!t.find(id_of(top | (i + count))));
  check_index(t);
  std::mt19937_64 random(7);
  std::shuffle(ids.begin(), ids.end(), random);
  const size_t half = ids.size() / 2;
  for (size_t i = 0; i < half; ++i) CHECK(t.erase(ids[i]));
  for (size_t i = 0; i < ids.size(); ++i) CHECK_EQUAL(holds(t, ids[i]), i >= half);
  for (size_t i = 0; i < half; ++i) CHECK(!t.erase(ids[i]));
  check_index(t);
  for (size_t i = 0; i < half; ++i) put(t, ids[i]);
  for (uint64_t id : ids) CHECK(holds(t, id));
  check_index(t);
  for (uint64_t id : ids) CHECK(t.erase(id));
  for (uint64_t id : ids) CHECK(!t.find(id));
  CHECK_EQUAL(t.size().rows, 0u);
  check_index(t);
}

TEST(rows_of_one_home_chunk_are_all_kept) {
  crowd(0, 0, 700);
  crowd(0x89ABCDEFull << 32, 0, 700);
  crowd(0x89ABCDEFull << 32, 6, 700);
  crowd(0xFFFFull << 48, 16, 300);
}

TEST(rows_that_wrap_at_the_end_of_the_index_are_all_kept) { crowd(0xFFFFFFFFull << 32, 0, 700); }

// Counters that never saturated must come back to zero, or searches of absent ids would stay long for ever.
TEST(overflow_counts_return_to_zero_when_all_rows_are_erased) {
  Arena arena;
  Table t(spec_of(1), 0, &arena);
  std::vector<uint64_t> ids;
  for (uint64_t i = 0; i < 200; ++i) ids.push_back(id_of((uint64_t{i % 2} << 63) | i));
  for (uint64_t id : ids) put(t, id);
  for (uint64_t id : ids) CHECK(t.erase(id));
  const PartitionView& p = t.view().partitions[0];
  for (uint32_t c = 0; c < p.chunks; ++c) {
    CHECK_EQUAL(chunk_at(p, c)->overflow, 0);
    for (uint8_t place : chunk_at(p, c)->place) CHECK_EQUAL(place, Chunk::kFree);
  }
}

// The id of an entry follows from where it lies. Homes at both ends of every partition, every number of
// chunks.
TEST(an_id_follows_from_its_entry_and_home_for_every_size_of_index) {
  std::mt19937_64 random(3);
  for (int bits : {0, 1, 6, 16})
    for (uint32_t chunks :
         {1u, 2u, 3u, 4u, 5u, 7u, 8u, 13u, 16u, 1000u, 1024u, 65535u, 65537u, 0x7FFFFFFFu, 0xFFFFFFFFu})
      for (int i = 0; i < 400; ++i) {
        uint64_t h = random();
        if (i % 4 == 0) h |= ~uint64_t{0} >> bits;     // the partition's last id
        if (i % 4 == 1) h &= ~(~uint64_t{0} >> bits);  // its first
        const int number_bits = number_bits_of(chunks, bits);
        const uint64_t number = random() & ~(~uint64_t{0} << number_bits);
        const auto partition = static_cast<uint32_t>(bits == 0 ? 0 : h >> (64 - bits));
        const uint32_t home = home_chunk(h, bits, chunks);
        CHECK(home < chunks);
        CHECK_EQUAL(mixed_id(h << number_bits | number, home, partition, bits, chunks), h);
      }
}

// A partition of one chunk has no bits to spare for row numbers but those of `place`.
TEST(the_smallest_indexes_hold_every_row_number) {
  for (int bits : {0, 1, 2, 3, 16}) {
    Arena arena;
    Table t(spec_of(1), bits, &arena);
    for (uint64_t i = 0; i < 200; ++i) {
      put(t, id_of(i * 0x0123456789ABCDEull));
      check_index(t);
      for (uint64_t k = 0; k <= i; ++k) CHECK(holds(t, id_of(k * 0x0123456789ABCDEull)));
    }
  }
}

// Ids of few home chunks and few low bits, in a random history of creations, erasures and searches.
void random_history(uint64_t seed, int bits, uint32_t operations) {
  Arena arena;
  Table t(spec_of(3), bits, &arena);
  std::unordered_map<uint64_t, bool> model;
  std::mt19937_64 random(seed);
  auto some_id = [&] {
    const uint64_t r = random();
    const uint64_t top = (r % 5) * 0x3333333333333333ull & (~uint64_t{0} << 32);
    const uint64_t middle = r % 7 == 0 ? (random() & 0xFFFFFFFF00ull) : ((r >> 16) % 64) << 8;
    return id_of(top ^ middle ^ ((r >> 32) % 4));
  };
  for (uint32_t k = 0; k < operations; ++k) {
    const uint64_t id = some_id();
    const bool there = model[id];
    CHECK_EQUAL(holds(t, id), there);
    // Phases of growth and of decline, so that erasures meet every fill.
    const bool grows = (k / 3000) % 2 == 0;
    if (random() % 4 < (grows ? 3u : 1u)) {
      if (!there) put(t, id);
      model[id] = true;
    } else {
      CHECK_EQUAL(t.erase(id), there);
      model[id] = false;
    }
    if (k % 4000 == 3999) check_index(t);
  }
  for (const auto& [id, there] : model) CHECK_EQUAL(holds(t, id), there);
  check_index(t);
}

TEST(a_random_history_leaves_what_a_map_would_hold) {
  random_history(11, 0, 24000);
  random_history(12, 2, 24000);
  random_history(13, 6, 12000);
}

TEST(growth_of_one_partition_keeps_values_and_state_of_every_row) {
  Arena arena;
  Table t(spec_of(5, ValueFormat::kFp32, OptimizerKind::kAdam), 1, &arena);
  const uint64_t count = 60000;
  for (uint64_t id = 0; id < count; ++id) {
    float* s = put(t, id).state;
    for (uint32_t j = 0; j < t.layout().state_floats; ++j) s[j] = static_cast<float>(id % 4093 + j);
  }
  for (uint64_t id = 0; id < count; ++id) {
    CHECK(holds(t, id));
    const float* s = t.find(id).state;
    for (uint32_t j = 0; j < t.layout().state_floats; ++j) CHECK(s[j] == static_cast<float>(id % 4093 + j));
  }
  check_index(t);
}

// Every way in which the parts of a row can lie: together or apart, several to a line, one or two to a block.
TEST(the_parts_of_a_row_belong_to_it_alone) {
  for (uint32_t dim : {1u, 3u, 8u, 16u, 24u, 32u, 64u, 4095u, 4096u})
    for (ValueFormat format : {ValueFormat::kFp32, ValueFormat::kFp16})
      for (OptimizerKind kind : kKinds) {
        Arena arena;
        Table t(spec_of(dim, format, kind), 0, &arena);
        const RowLayout& l = t.layout();
        CHECK_EQUAL(l.state_offset % 4, 0u);
        CHECK_EQUAL(l.value_stride % 4, 0u);
        constexpr uint64_t kRows = 150;  // more than share a record
        for (uint64_t id = 0; id < kRows; ++id) {
          const Row row = t.find_or_create(id);
          std::memset(row.values, static_cast<int>(id + 1), l.value_bytes);
          std::memset(row.state, static_cast<int>(id + 2), l.state_bytes());
          *row.version = static_cast<uint8_t>(id + 3);
        }
        for (uint64_t id = 0; id < kRows; ++id) {
          const Row row = t.find(id);
          CHECK(bool{row});
          const char* state = reinterpret_cast<const char*>(row.state);
          bool same = *row.version == static_cast<uint8_t>(id + 3);
          for (uint32_t b = 0; b < l.value_bytes; ++b) same &= row.values[b] == static_cast<char>(id + 1);
          for (uint32_t b = 0; b < l.state_bytes(); ++b) same &= state[b] == static_cast<char>(id + 2);
          CHECK(same);
        }
      }
}

// A lookup reads these lines and no other; a state or version that straddles two costs one more at every
// step.
TEST(values_of_whole_cache_lines_are_aligned_to_them_and_small_states_straddle_none) {
  for (uint32_t dim : {16u, 32u, 64u, 128u})
    for (OptimizerKind kind : {OptimizerKind::kSgd, OptimizerKind::kRowWiseAdagrad}) {
      Arena arena;
      Table t(spec_of(dim, ValueFormat::kFp32, kind), 2, &arena);
      for (uint64_t id = 0; id < 3000; ++id) {
        const Row row = t.find_or_create(id);
        CHECK_EQUAL(reinterpret_cast<uintptr_t>(row.values) % 64, 0u);
        CHECK_EQUAL(reinterpret_cast<uintptr_t>(row.state) / 64,
                    reinterpret_cast<uintptr_t>(row.version) / 64);
      }
    }
}

TEST(erased_rows_are_used_again_before_new_memory_is_taken) {
  Arena arena;
  Table t(spec_of(4), 2, &arena);
  for (uint64_t id = 0; id < 5000; ++id) put(t, id);
  const uint64_t held = t.size().overhead_bytes;
  for (uint64_t round = 1; round <= 20; ++round)
    for (uint64_t id = 0; id < 5000; ++id) {
      CHECK(t.erase((round - 1) * 5000 + id));
      put(t, round * 5000 + id);
    }
  // Ids fall unevenly into partitions, so a partition may grow a little; twenty generations must not add up.
  CHECK(t.size().overhead_bytes < held + held / 2 + 65536);
  for (uint64_t id = 0; id < 5000; ++id) CHECK(holds(t, 100000 + id));
  check_index(t);
}

TEST(rows_are_visited_in_one_order_for_any_number_of_partitions) {
  std::vector<uint64_t> orders[3];
  const int bits[] = {0, 3, 9};
  for (int k = 0; k < 3; ++k) {
    Arena arena;
    Table t(spec_of(1), bits[k], &arena);
    std::mt19937_64 random(5);
    std::vector<uint64_t> ids;
    for (int i = 0; i < 3000; ++i) ids.push_back(i % 3 == 0 ? static_cast<uint64_t>(i) : random());
    std::mt19937_64 shuffle(static_cast<uint64_t>(k));
    std::shuffle(ids.begin(), ids.end(), shuffle);
    for (uint64_t id : ids) put(t, id);
    for (uint32_t p = 0; p < t.partitions(); ++p)
      t.visit_ordered(p, [&](uint64_t id, const Row& row) {
        CHECK(row == t.find(id));
        orders[k].push_back(id);
      });
    CHECK(std::is_sorted(orders[k].begin(), orders[k].end(),
                         [](uint64_t a, uint64_t b) { return mix(a) < mix(b); }));
  }
  CHECK_EQUAL(orders[0].size(), 3000u);
  CHECK(orders[0] == orders[1]);
  CHECK(orders[0] == orders[2]);
}

TEST(a_cleared_table_is_empty_and_takes_rows_again) {
  Arena arena;
  Table t(spec_of(16), 3, &arena);
  for (int round = 0; round < 3; ++round) {
    for (uint64_t id = 0; id < 20000; ++id) put(t, id);
    check_index(t);
    t.clear();
    CHECK_EQUAL(t.size().rows, 0u);
    CHECK_EQUAL(t.size().overhead_bytes, 0u);
    for (uint64_t id = 0; id < 20000; id += 97) CHECK(!t.find(id) && !t.erase(id));
  }
}

}  // namespace

int main(int argc, char** argv) { return run_all(argc > 1 ? argv[1] : "") == 0 ? 0 : 1; }
