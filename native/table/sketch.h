// How often ids without a row have been asked for lately: a counting sketch with decay.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace satrap {

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
    Line& line = lines_[line_of(h, partition_bits)];
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
  void clear() {
    std::fill(lines_.begin(), lines_.end(), Line{});
    seen_ = 0;
  }

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
    for (Line& line : lines_)
      for (uint8_t& c : line.counters) c = static_cast<uint8_t>(c >> 1);
    seen_ = 0;
  }

  uint64_t window_ = 0, seen_ = 0;
  std::vector<Line> lines_;
};

}  // namespace satrap
