// How often ids without a row have been asked for lately: a counting sketch with decay.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace satrap {

// The counters of a sketch as they were at one moment, while it goes on: a block is copied before it first
// changes. The memory is asked for at once, and taken as blocks are copied.
class SketchCut {
 public:
  static constexpr size_t kBlock = 4096;

  SketchCut() = default;
  explicit SketchCut(size_t bytes)
      : bytes_(bytes), counters_(new char[bytes]), copied_((bytes + kBlock - 1) / kBlock) {}

  size_t bytes() const { return bytes_; }
  // The byte at `at` of `now`, all counters, is about to change.
  void keep(const char* now, size_t at) {
    if (!copied_[at / kBlock]) copy(now, at / kBlock);
  }
  void keep_all(const char* now) {
    for (size_t i = 0; i < copied_.size(); ++i)
      if (!copied_[i]) copy(now, i);
  }
  // All counters of then. `now`: of the sketch, or null where all of them have been kept.
  void read(const char* now, char* out) const {
    for (size_t i = 0; i < copied_.size(); ++i)
      std::memcpy(out + i * kBlock, (copied_[i] ? counters_.get() : now) + i * kBlock, size(i));
  }

 private:
  size_t size(size_t block) const { return std::min(kBlock, bytes_ - block * kBlock); }
  void copy(const char* now, size_t block) {
    std::memcpy(counters_.get() + block * kBlock, now + block * kBlock, size(block));
    copied_[block] = 1;
  }

  size_t bytes_ = 0;
  std::unique_ptr<char[]> counters_;
  std::vector<char> copied_;
};

// Counts sightings of mixed ids of one partition, approximately and never too low within a window. A line of
// 64 one-byte counters is chosen by the upper bits of the id, four of its counters by the lower ones; the
// count is the least of the four, and only those that are least are raised. When `window` sightings have been
// counted, all counters are halved. Eight bytes a sighting of the window.
class Sketch {
 public:
  static constexpr uint64_t kBytesPerSighting = 8;

  Sketch() = default;
  explicit Sketch(uint64_t window)
      : window_(window), lines_(window == 0 ? 0 : (window * kBytesPerSighting + 63) / 64) {}

  uint32_t count(uint64_t h, int partition_bits) const {
    const Line& line = lines_[line_of(h, partition_bits)];
    uint32_t least = 255;
    for (int k = 0; k < 4; ++k) least = std::min<uint32_t>(least, line.counters[cell(h, k)]);
    return least;
  }

  // Counts one sighting; returns what `count` says then.
  uint32_t add(uint64_t h, int partition_bits) {
    if (seen_ == window_) halve();
    ++seen_;
    const size_t at = line_of(h, partition_bits);
    Line& line = lines_[at];
    if (cut_ != nullptr) cut_->keep(data(), at * sizeof(Line));
    const uint32_t least = count(h, partition_bits), next = std::min<uint32_t>(least + 1, 255);
    for (int k = 0; k < 4; ++k) {
      uint8_t& c = line.counters[cell(h, k)];
      c = std::max(c, static_cast<uint8_t>(next));
    }
    return next;
  }

  void prefetch(uint64_t h, int partition_bits) const {
    __builtin_prefetch(&lines_[line_of(h, partition_bits)], 1);
  }
  // What changes from here on is kept there before; null: nothing is. Another sketch that takes the place of
  // this one knows nothing of it: keep all before.
  void keep_in(SketchCut* cut) { cut_ = cut; }

  uint64_t window() const { return window_; }
  uint64_t seen() const { return seen_; }  // since the counters were last halved
  size_t bytes() const { return lines_.size() * sizeof(Line); }
  // All counters, as they lie.
  const char* data() const { return reinterpret_cast<const char*>(lines_.data()); }
  void assign(const char* data, uint64_t seen) {
    if (!lines_.empty()) std::memcpy(lines_.data(), data, bytes());
    seen_ = seen;
  }

 private:
  struct alignas(64) Line {
    uint8_t counters[64];
  };
  size_t line_of(uint64_t h, int partition_bits) const {
    return static_cast<size_t>((((h << partition_bits) >> 32) * lines_.size()) >> 32);
  }
  static uint32_t cell(uint64_t h, int k) { return static_cast<uint32_t>(h >> (6 * k)) & 63u; }
  void halve() {
    if (cut_ != nullptr) cut_->keep_all(data());
    for (Line& line : lines_)
      for (uint8_t& c : line.counters) c = static_cast<uint8_t>(c >> 1);
    seen_ = 0;
  }

  uint64_t window_ = 0, seen_ = 0;
  std::vector<Line> lines_;
  SketchCut* cut_ = nullptr;
};

}  // namespace satrap
