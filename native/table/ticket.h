// The ticket of a batch: its unique ids by table, and the way back from every id of the batch to them.
#pragma once
#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "table/view.h"

namespace satrap {

struct TicketFeature {
  uint32_t table;
  const uint64_t* ids;  // [n]
  size_t n;
  const int64_t* offsets;  // [B + 1], or null: n == B, one id a sample
  const float* weights;    // [n], or null
  uint8_t pooling;         // 0 sum, 1 mean, 2 sqrtn
  uint32_t dim;
  size_t column;        // in the packed tensor; of no meaning for a sequence
  uint32_t max_length;  // 0: pooled. Else a sequence, padded to this length
};

// Immutable after construction; pool and unpool may be called from any thread. The arrays of the features
// must outlive it. Unique ids are in the order in which they first occur, and gradients are summed in that
// order of occurrence, so nothing depends on the number of threads.
class Ticket {
 public:
  Ticket(std::vector<TicketFeature> features, uint32_t tables, size_t samples, ThreadPool& pool);

  const std::vector<uint64_t>& unique(uint32_t table) const { return unique_[table]; }
  size_t samples() const { return samples_; }
  size_t ids() const { return ids_; }
  const std::vector<TicketFeature>& features() const { return features_; }
  // Of each id of a feature, its place among the unique ids of the table.
  const std::vector<int32_t>& positions(size_t feature) const { return positions_[feature]; }

  // rows[t]: [U_t, D_t]. out: [B, width]; sequences: per sequence feature, in order, [B, L, D] and mask [B,
  // L].
  void pool(const std::vector<const float*>& rows, float* out, size_t width,
            const std::vector<float*>& sequences, const std::vector<uint8_t*>& masks, ThreadPool& pool) const;
  // The gradient of pool. grad: [B, width] or null (zero); sequences: [B, L, D] each or null. rows[t]:
  // written whole.
  void unpool(const float* grad, size_t width, const std::vector<const float*>& sequences,
              const std::vector<float*>& rows, ThreadPool& pool) const;

 private:
  FeatureView view(size_t feature) const;

  std::vector<TicketFeature> features_;
  size_t samples_ = 0, ids_ = 0;
  std::vector<std::vector<uint64_t>> unique_;    // by table
  std::vector<std::vector<int32_t>> positions_;  // by feature
  std::vector<std::vector<uint32_t>> of_table_;  // features by table
};

// Whether an id occurs twice.
bool has_duplicates(const uint64_t* ids, size_t n);

}  // namespace satrap
