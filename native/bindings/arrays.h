// Arrays as the bindings take and give them.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <vector>

namespace satrap {

namespace nb = nanobind;

template <typename T, typename... Rest>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu, Rest...>;
template <typename T, typename... Rest>
using Out = nb::ndarray<T, nb::c_contig, nb::device::cpu, Rest...>;
using Ids = In<uint64_t, nb::ndim<1>>;

inline void need(bool ok, const char* message) {
  if (!ok) throw std::invalid_argument(message);
}

// Numpy arrays that own their memory, made without a copy.
template <typename T>
nb::ndarray<nb::numpy, T> owned(std::unique_ptr<T[]> data, std::initializer_list<size_t> shape) {
  T* p = data.release();
  return nb::ndarray<nb::numpy, T>(p, shape,
                                   nb::capsule(p, [](void* q) noexcept { delete[] static_cast<T*>(q); }));
}

void bind_wire(nb::module_& m);
void bind_durable(nb::module_& m);

// A copy of ids.
inline nb::ndarray<nb::numpy, uint64_t> owned_ids(const std::vector<uint64_t>& ids) {
  std::unique_ptr<uint64_t[]> to(new uint64_t[ids.size()]);
  std::copy(ids.begin(), ids.end(), to.get());
  return owned(std::move(to), {ids.size()});
}

}  // namespace satrap
