// SPDX-License-Identifier: MIT
// Tensors of Python, as the bindings read and make them. Everything here needs the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <vector>

namespace mixfast {
namespace bind {

namespace py = pybind11;

// The first five are the numbers of common/matrix.h and masked_upsample_pool/kernels.h; kByte stands for bool too.
enum Number : int { kFloat32, kFloat64, kFloat16, kBFloat16, kByte, kInt64, kInteger, kOther };
inline int64_t bytes(Number number) {
  constexpr int64_t each[] = {4, 8, 2, 2, 1, 8};
  return each[number];
}

enum class Kind : int { kNone = 0, kCpu = 1, kCuda = 2 };  // as in DLPack
constexpr int kMostDims = 4;

// What a tensor was when it was read; `object` keeps its memory. Strides count elements.
struct Tensor {
  py::object object;  // null: there is no tensor
  void* data = nullptr;
  int dims = 0;
  int64_t size[kMostDims] = {}, stride[kMostDims] = {};
  Number number = kOther;
  Kind kind = Kind::kNone;
  int device = 0;

  bool floating() const { return number <= kBFloat16; }
  py::object python() const { return object ? object : py::none(); }
  bool contiguous() const;
  bool channels_last() const;  // [B, C, h, w] in memory as [B, h, w, C]; contiguous ones may be so too
  bool with(const Tensor& other) const { return kind == other.kind && device == other.device; }
};

// Reads any strided tensor of up to kMostDims dimensions; the first returns whether it is one, the second raises.
bool try_read(py::handle object, Tensor& tensor);
Tensor read(py::handle object);

// Reads a tensor whose memory is all that there is to it: no subclass, and not negated lazily.
bool try_read_plain(py::handle object, Tensor& tensor);
// The same of what autograd saved of a tensor that was such: not asked again whether it is negated.
bool try_read_saved(py::handle object, Tensor& tensor);
// The first again, of each member of a list or tuple, of which there must be at least one.
bool try_read_plain(py::handle objects, std::vector<Tensor>& tensors);

// Whether nothing is traced, transformed or watched, as mixfast/ops/_eager.py says; torch.compile aside.
bool nothing_on();
bool requires_grad(const Tensor& tensor);
bool grad_enabled();
bool autocast_enabled(Kind kind);
int threads();
void* stream(const Tensor& tensor);  // the current one of its device

// The tensor itself, or a contiguous copy.
Tensor contiguous(const Tensor& tensor);
// The tensor, or its numbers in the dtype of `like`.
Tensor as(const Tensor& tensor, const Tensor& like);
// The same numbers as int64.
Tensor as_int64(const Tensor& tensor);
// New memory on the device of `like`.
Tensor empty(const Tensor& like, std::initializer_list<int64_t> size, Number number, bool channels_last = false);

// Views of these numbers of rows, one after another.
py::tuple split(const Tensor& rows, const std::vector<int64_t>& sizes);

// function(*arguments)
py::object call(py::handle function, const py::tuple& arguments);

// Exact integers and numbers (no bool), lists or tuples of them.
bool try_integer(py::handle object, int64_t& integer);
bool try_number(py::handle object, double& number);
bool try_integers(py::handle object, std::vector<int64_t>& integers);
bool try_numbers(py::handle object, std::vector<double>& numbers);
// "none", "mean" or "sum": 0, 1 or 2.
bool try_reduction(py::handle object, int& reduction);
// "auto" where no environment variable replaces it, or a backend's own name.
bool names_backend(py::handle object, const char* backend);

}  // namespace bind
}  // namespace mixfast
