// Checksums of what is written to disk, for satrap.store.
#include <vector>

#include "bindings/arrays.h"
#include "durable/crc32c.h"

namespace satrap {
namespace {

// Whatever bytes Python has (bytes, memoryviews, arrays), held while they are read.
class Bytes {
 public:
  explicit Bytes(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw nb::python_error();
  }
  Bytes(Bytes&& other) noexcept : view_(other.view_) { other.view_.obj = nullptr; }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  ~Bytes() { PyBuffer_Release(&view_); }

  const void* data() const { return view_.buf; }
  size_t size() const { return static_cast<size_t>(view_.len); }

 private:
  Py_buffer view_{};
};

uint32_t crc_of(const nb::sequence& parts, uint32_t crc) {
  std::vector<Bytes> held;
  size_t size = 0;
  for (nb::handle part : parts) {
    held.emplace_back(part);
    size += held.back().size();
  }
  const auto sum = [&] {
    for (const Bytes& b : held) crc = crc32c(crc, b.data(), b.size());
  };
  // Handing the lock over costs more than a short sum.
  if (size < 32768) {
    sum();
  } else {
    nb::gil_scoped_release release;
    sum();
  }
  return crc;
}

}  // namespace

void bind_durable(nb::module_& m) { m.def("crc32c", &crc_of); }

}  // namespace satrap
