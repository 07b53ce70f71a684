// What the native tests share: table specs, ids that collide on purpose, and the invariants of an index.
#pragma once
#include <cstdint>
#include <random>
#include <unordered_set>
#include <vector>

#include "base/hash.h"
#include "check.h"
#include "table/probe.h"
#include "table/store.h"
#include "table/table.h"

namespace satrap::test {

inline const OptimizerKind kKinds[] = {
    OptimizerKind::kSgd,  OptimizerKind::kAdagrad, OptimizerKind::kRowWiseAdagrad,
    OptimizerKind::kAdam, OptimizerKind::kAdamW,   OptimizerKind::kFtrl};

inline TableSpec spec_of(uint32_t dim, ValueFormat format = ValueFormat::kFp32,
                         OptimizerKind kind = OptimizerKind::kSgd, float momentum = 0.0f) {
  TableSpec s;
  s.dim = dim;
  s.format = format;
  s.optimizer = {kind, 0.05f, momentum, 0.9f, 0.999f, 1e-6f, 0.02f, 0.125f, 1.0f, 0.01f, 0.02f};
  if (kind == OptimizerKind::kFtrl) s.optimizer.weight_decay = 0.0f;
  s.initializer = {InitializerKind::kUniform, -0.5f, 0.5f};
  s.key = 0x5A7A9u;
  return s;
}

// The id whose mixed form is h: with it a test says in which chunk, and under which tag, an id lies.
inline uint64_t id_of(uint64_t h) { return unmix(h); }

inline float* values_of(const Row& row) { return reinterpret_cast<float*>(row.values); }

// Arrays of one table's part of a pull or push, and the item that names them.
struct Buffers {
  Buffers(const TableSpec& spec, uint32_t index, std::vector<uint64_t> wanted, float gradient = 0.0f)
      : table(index),
        ids(std::move(wanted)),
        values(ids.size() * spec.dim),
        gradients(ids.size() * spec.dim, gradient),
        versions(ids.size()),
        hints(ids.size() + kSealWords) {}

  PullItem pull() { return {table, ids.data(), ids.size(), values.data(), versions.data(), hints.data()}; }
  // As one that pulls nothing first: without versions and hints.
  PushItem push() const { return {table, ids.data(), ids.size(), gradients.data(), nullptr, nullptr}; }
  PushItem push_pulled() const {
    return {table, ids.data(), ids.size(), gradients.data(), versions.data(), hints.data()};
  }

  uint32_t table;
  std::vector<uint64_t> ids;
  std::vector<float> values, gradients;
  std::vector<uint8_t> versions;
  std::vector<uint32_t> hints;
};

// What every index must satisfy after any history: each row is found where its entry says, under the id that
// entry and place spell; no row number serves twice; and a chunk's overflow is exactly the number of rows
// that passed it, unless it has lost count (255).
inline void check_index(Table& t) {
  const TableView view = t.view();
  uint64_t rows = 0;
  for (uint32_t part = 0; part < t.partitions(); ++part) {
    const PartitionView& p = view.partitions[part];
    std::vector<uint32_t> passed(p.chunks, 0);
    std::unordered_set<uint32_t> numbers;
    uint64_t found = 0;
    auto check_row = [&](uint64_t h, uint32_t number, uint32_t offset) {
      ++found;
      CHECK(number < p.rows);
      CHECK(numbers.insert(number).second);
      CHECK_EQUAL(t.partition_of(unmix(h)), part);
      CHECK(t.find(unmix(h)) == row_at(view, p, number));
      const uint32_t home = home_chunk(h, view.partition_bits, p.chunks);
      for (uint32_t k = 0; k < 16; ++k) {
        const uint32_t at = probe_offset(h, k);
        if (at == Chunk::kFree) continue;
        if (at == offset) break;
        ++passed[chunk_behind(home, at, p.chunks)];
      }
    };
    for (uint32_t c = 0; c < p.chunks; ++c) {
      const Chunk& chunk = *chunk_at(p, c);
      for (int slot = 0; slot < Chunk::kSlots; ++slot) {
        const uint32_t offset = chunk.place[slot] & 15u;
        if (offset == Chunk::kFree) continue;
        const auto home = static_cast<uint32_t>((c + uint64_t{p.chunks} * 15 - offset) % p.chunks);
        const uint64_t h = mixed_id(chunk.entry[slot], home, part, view.partition_bits, p.chunks);
        CHECK_EQUAL(home_chunk(h, view.partition_bits, p.chunks), home);
        check_row(h, number_in(chunk, slot, p.number_bits), offset);
      }
    }
    if (p.stash != nullptr)
      for (const auto& [h, number] : p.stash->rows()) check_row(h, number, Chunk::kFree);
    for (uint32_t c = 0; c < p.chunks; ++c) {
      const Chunk& chunk = *chunk_at(p, c);
      if (chunk.overflow != 255) CHECK_EQUAL(uint32_t{chunk.overflow}, passed[c]);
    }
    CHECK_EQUAL(found, t.rows(part));
    rows += found;
  }
  CHECK_EQUAL(rows, t.size().rows);
}

}  // namespace satrap::test
