// Bytes that nobody wrote, for what native code reads of messages, journals and row files: whatever they are,
// nothing outside of a buffer is touched (the sanitizers watch), and what is refused changes nothing. What
// Python checks before it calls is checked here too: lengths and positions fit.
#include <algorithm>
#include <memory>
#include <random>
#include <span>

#include "durable/crc32c.h"
#include "rows.h"
#include "wire/rows.h"

using namespace satrap;
using namespace satrap::test;

namespace {

constexpr int kInputs = 20000;

// A buffer of its own, of exactly this size: one byte beyond it is a heap overflow.
std::unique_ptr<char[]> any_bytes(std::mt19937_64& random, size_t n) {
  std::unique_ptr<char[]> out(new char[n]);
  for (size_t i = 0; i < n; ++i) {
    const uint64_t r = random();
    // Numbers that are extreme are rare among random ones.
    out[i] = static_cast<char>(r % 4 == 0 ? 0xFF : r % 4 == 1 ? 0 : r >> 8);
  }
  return out;
}

TEST(any_bytes_of_a_message_are_rows_of_some_values_and_nothing_else_is_touched) {
  const WireKernels* const* found;
  const std::span levels(found, wire_kernel_levels(&found));
  std::mt19937_64 random(1);
  for (int i = 0; i < kInputs; ++i) {
    const auto format = static_cast<WireFormat>(random() % 3);
    const size_t rows = random() % 9;
    const auto dim = static_cast<uint32_t>(1 + random() % (i % 16 == 0 ? 200 : 40));
    const auto in = any_bytes(random, section_bytes(format, rows, dim));
    const float scale =
        format == WireFormat::kFp16 ? std::ldexp(1.0f, static_cast<int>(random() % 254) - 126) : 1;
    std::vector<uint32_t> positions(rows);
    for (size_t k = 0; k < rows; ++k) positions[k] = static_cast<uint32_t>(k);
    std::shuffle(positions.begin(), positions.end(), random);
    std::vector<float> first;
    for (const WireKernels* k : levels) {
      std::vector<float> out(rows * dim);
      k->decode(format, in.get(), rows, dim, scale, positions.data(), out.data());
      k->largest(out.data(), out.size());
      if (first.empty()) first = out;
      check_bits(first.data(), out.data(), out.size(), k->name, __FILE__, __LINE__);
    }
  }
}

TEST(any_bytes_of_a_journal_have_one_checksum_wherever_they_are_cut) {
  std::mt19937_64 random(2);
  for (int i = 0; i < kInputs; ++i) {
    const size_t n = random() % 300, cut = n == 0 ? 0 : random() % n;
    const auto in = any_bytes(random, n);
    const uint32_t whole = crc32c(0, in.get(), n);
    CHECK_EQUAL(crc32c(crc32c(0, in.get(), cut), in.get() + cut, n - cut), whole);
    CHECK_EQUAL(crc32c_portable(0, in.get(), n), whole);
  }
}

TEST(any_rows_of_a_file_can_be_imported_trained_and_exported) {
  std::mt19937_64 random(3);
  const ValueFormat formats[] = {ValueFormat::kFp32, ValueFormat::kFp16, ValueFormat::kBf16,
                                 ValueFormat::kInt8};
  for (int i = 0; i < kInputs / 20; ++i) {
    const auto dim = static_cast<uint32_t>(1 + random() % 70);
    const TableSpec spec = spec_of(dim, formats[random() % 4], kKinds[random() % 6]);
    Store store({spec}, 1, 1);
    std::vector<uint64_t> ids;
    for (size_t k = random() % 20; k > 0; --k) ids.push_back(random() % 64);
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    const size_t values = stored_bytes(spec.format, dim), words = exported_words(spec);
    for (const uint64_t id : ids) {
      const auto v = any_bytes(random, values);
      const auto s = any_bytes(random, 4 * words);
      std::vector<float> state(words);
      if (words != 0) std::memcpy(state.data(), s.get(), 4 * words);
      store.import_rows(0, {{&id, 1, reinterpret_cast<const uint8_t*>(v.get()), state.data()}});
      const Row row = store.table(0).find(id);
      std::vector<uint8_t> back(values);
      std::vector<float> state_back(words);
      export_row(spec, row, back.data(), state_back.data());
      CHECK(std::memcmp(back.data(), v.get(), values) == 0);
    }
    Buffers b(spec, 0, ids, 0.5f);
    store.pull({b.pull()}, true);
    store.push({b.push_pulled()}, 1.0f);
    check_index(store.table(0));
  }
}

TEST(any_state_of_a_bounded_partition_is_taken_or_refused_and_the_table_goes_on) {
  std::mt19937_64 random(4);
  TableSpec spec = spec_of(2);
  spec.bound.eviction = Eviction::kFrequency;
  spec.bound.rows = 64;
  spec.bound.ttl = 40;
  spec.bound.sightings = 2;
  spec.bound.window = 256;
  Store store({spec}, 2, 1);
  for (int i = 0; i < kInputs; ++i) {
    const auto part = static_cast<uint32_t>(random() % 4);
    if (random() % 8 == 0) store.table(0).follow(part);
    std::string state = random() % 2 == 0 ? store.table(0).export_bound(part)
                                          : store.table(0).export_clocks(part, random() % 2 == 0);
    const bool whole = random() % 2 == 0;
    if (!whole) state.resize(random() % (state.size() + 1));
    for (size_t k = random() % 4; k > 0 && !state.empty(); --k)
      state[random() % state.size()] = static_cast<char>(random() % 3 == 0 ? 0xFF : random());
    const std::unique_ptr<char[]> exact(new char[state.size()]);
    std::copy(state.begin(), state.end(), exact.get());
    if (random() % 2 == 0)
      store.table(0).import_bound(part, exact.get(), state.size());
    else
      store.table(0).advance_bound(part, exact.get(), state.size());
    std::vector<uint64_t> ids(8);
    for (size_t k = 0; k < ids.size(); ++k) ids[k] = 8 * (random() % 32) + k;
    Buffers b(spec, 0, ids);
    store.pull({b.pull()}, true);
    for (uint32_t p = 0; p < 4; ++p) CHECK(store.table(0).rows(p) <= 16);
  }
  check_index(store.table(0));
}

}  // namespace
