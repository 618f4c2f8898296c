// SPDX-License-Identifier: MIT
// Tensors of Python without a link to torch. They are read through the table of C functions that torch gives for DLPack
// (60 nanoseconds each), or by their Python attributes where there is no such table.
#include "common/bind_tensor.h"

#include <pybind11/gil_safe_call_once.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "common/dlpack_table.h"

namespace mixfast {
namespace bind {
namespace {

const dlpack::Table* find_table(const py::object& tensor_class) {
  const py::object capsule = py::getattr(tensor_class, dlpack::kAttribute, py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), dlpack::kCapsule)) return nullptr;
  auto* table = static_cast<const dlpack::Table*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsule));
  while (table && table->major > dlpack::kMajor) table = table->older;
  return table && table->major == dlpack::kMajor && table->read ? table : nullptr;
}

// What is looked up in torch, once.
struct Torch {
  py::module_ torch = py::module_::import("torch");
  py::object tensor = torch.attr("Tensor"), parameter = torch.attr("nn").attr("Parameter");
  py::object is_grad_enabled = torch.attr("is_grad_enabled"), get_num_threads = torch.attr("get_num_threads");
  py::object is_autocast_enabled = torch.attr("is_autocast_enabled"), strided = torch.attr("strided");
  py::module_ eager = py::module_::import("mixfast.ops._eager");
  py::object included = eager.attr("included"), nothing_on = eager.attr("NOTHING_ON");
  py::object current_stream = torch.attr("cuda").attr("current_stream");
  py::str is_neg = name("is_neg"), raw_repr = name("raw_repr"), requires_grad = name("requires_grad"),
          empty = name("new_empty_strided"), split = name("split_with_sizes");
  py::str cpu = name("cpu"), cuda = name("cuda");
  py::tuple dtype = py::make_tuple(name("dtype"));
  py::object dtypes[kInt64 + 1] = {torch.attr("float32"),  torch.attr("float64"), torch.attr("float16"),
                                   torch.attr("bfloat16"), torch.attr("uint8"),   torch.attr("int64")};
  const dlpack::Table* table = find_table(tensor);

  static py::str name(const char* text) { return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(text)); }
};

const Torch& torch() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Torch> storage;
  return storage.call_once_and_store_result([] { return Torch(); }).get_stored();
}

py::object checked(PyObject* result) {
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

bool truth(const py::object& function) { return checked(PyObject_CallNoArgs(function.ptr())).is(py::handle(Py_True)); }

Number number_of(const dlpack::DLTensor& from) {
  switch (from.code << 8 | from.bits) {
    case dlpack::kFloat << 8 | 32:
      return kFloat32;
    case dlpack::kFloat << 8 | 64:
      return kFloat64;
    case dlpack::kFloat << 8 | 16:
      return kFloat16;
    case dlpack::kBFloat << 8 | 16:
      return kBFloat16;
    case dlpack::kBool << 8 | 8:
    case dlpack::kUInt << 8 | 8:
      return kByte;
    case dlpack::kInt << 8 | 64:
      return kInt64;
    default:
      return from.code == dlpack::kInt ? kInteger : kOther;
  }
}

Kind kind_of(int device_type) {
  return device_type == static_cast<int>(Kind::kCpu)    ? Kind::kCpu
         : device_type == static_cast<int>(Kind::kCuda) ? Kind::kCuda
                                                        : Kind::kNone;
}

bool read_by_table(const dlpack::Table& table, py::handle object, Tensor& tensor) {
  dlpack::DLTensor from;
  if (table.read(object.ptr(), &from) != 0) {
    PyErr_Clear();
    return false;
  }
  if (from.ndim > kMostDims || from.lanes != 1) return false;
  tensor.data = static_cast<char*>(from.data) + from.byte_offset;
  tensor.dims = from.ndim;
  std::copy_n(from.shape, from.ndim, tensor.size);
  std::copy_n(from.strides, from.ndim, tensor.stride);
  tensor.number = number_of(from);
  tensor.kind = kind_of(from.device_type);
  tensor.device = from.device_id;
  return true;
}

bool read_by_attributes(py::handle object, Tensor& tensor) {
  if (!py::isinstance(object, torch().tensor) || !torch().strided.is(object.attr("layout"))) return false;
  const py::tuple size = object.attr("shape"), stride = object.attr("stride")();
  if (size.size() > kMostDims) return false;
  tensor.data = reinterpret_cast<void*>(object.attr("data_ptr")().cast<uintptr_t>());
  tensor.dims = static_cast<int>(size.size());
  for (int i = 0; i < tensor.dims; ++i) {
    tensor.size[i] = size[i].cast<int64_t>();
    tensor.stride[i] = stride[i].cast<int64_t>();
  }
  const py::object dtype = object.attr("dtype"), *const end = torch().dtypes + kInt64 + 1;
  const auto* const found = std::find_if(torch().dtypes, end, [&](const py::object& known) { return known.is(dtype); });
  const bool integer = !dtype.attr("is_floating_point").cast<bool>() && !dtype.attr("is_complex").cast<bool>();
  if (found != end) {
    tensor.number = static_cast<Number>(found - torch().dtypes);
  } else if (dtype.is(torch().torch.attr("bool"))) {
    tensor.number = kByte;
  } else {
    tensor.number = integer && dtype.attr("is_signed").cast<bool>() ? kInteger : kOther;
  }
  const py::object device = object.attr("device").attr("type");
  tensor.kind = device.equal(torch().cpu) ? Kind::kCpu : device.equal(torch().cuda) ? Kind::kCuda : Kind::kNone;
  tensor.device = tensor.kind == Kind::kCuda ? object.attr("get_device")().cast<int>() : 0;
  return true;
}

// Whether the numbers lie one after another, with the dimensions in this order, from the innermost on.
bool lies_in_order(const Tensor& tensor, const int* order) {
  int64_t expected = 1;
  for (const int* i = order; i < order + tensor.dims; ++i) {
    if (tensor.size[*i] == 0) return true;
    if (tensor.size[*i] != 1 && tensor.stride[*i] != expected) return false;
    expected *= tensor.size[*i];
  }
  return true;
}

template <class T, class Try>
bool try_each(py::handle objects, std::vector<T>& found, Try try_one) {
  if (!PyList_CheckExact(objects.ptr()) && !PyTuple_CheckExact(objects.ptr())) return false;
  found.resize(static_cast<size_t>(PySequence_Fast_GET_SIZE(objects.ptr())));
  for (size_t i = 0; i < found.size(); ++i) {
    if (!try_one(PySequence_Fast_GET_ITEM(objects.ptr(), i), found[i])) return false;
  }
  return true;
}

Tensor called(const Tensor& tensor, const char* method) { return read(tensor.object.attr(method)()); }

}  // namespace

bool Tensor::contiguous() const {
  constexpr int order[] = {3, 2, 1, 0};
  return lies_in_order(*this, order + kMostDims - dims);
}

bool Tensor::channels_last() const {
  constexpr int order[] = {1, 3, 2, 0};
  return lies_in_order(*this, order);
}

bool try_read(py::handle object, Tensor& tensor) {
  const dlpack::Table* const table = torch().table;
  if (!(table ? read_by_table(*table, object, tensor) : read_by_attributes(object, tensor))) return false;
  tensor.object = py::reinterpret_borrow<py::object>(object);
  return true;
}

Tensor read(py::handle object) {
  Tensor tensor;
  if (!try_read(object, tensor)) throw py::type_error("mixfast needs strided tensors of at most four dimensions");
  return tensor;
}

bool try_read_saved(py::handle object, Tensor& tensor) {
  const auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
  return (type == torch().tensor.ptr() || type == torch().parameter.ptr()) && try_read(object, tensor);
}

bool try_read_plain(py::handle object, Tensor& tensor) {
  return try_read_saved(object, tensor) &&
         checked(PyObject_CallMethodNoArgs(object.ptr(), torch().is_neg.ptr())).is(py::handle(Py_False));
}

bool try_read_plain(py::handle objects, std::vector<Tensor>& tensors) {
  bool (*const read_one)(py::handle, Tensor&) = try_read_plain;
  return try_each(objects, tensors, read_one) && !tensors.empty();
}

bool nothing_on() {
  const py::object included = checked(PyObject_CallNoArgs(torch().included.ptr()));
  const py::object bits = checked(PyObject_CallMethodNoArgs(included.ptr(), torch().raw_repr.ptr()));
  return PySet_Contains(torch().nothing_on.ptr(), bits.ptr()) == 1;
}

bool requires_grad(const Tensor& tensor) {
  return checked(PyObject_GetAttr(tensor.object.ptr(), torch().requires_grad.ptr())).is(py::handle(Py_True));
}

bool grad_enabled() { return truth(torch().is_grad_enabled); }

bool autocast_enabled(Kind kind) {
  const py::str& name = kind == Kind::kCuda ? torch().cuda : torch().cpu;
  return checked(PyObject_CallOneArg(torch().is_autocast_enabled.ptr(), name.ptr())).is(py::handle(Py_True));
}

int threads() { return checked(PyObject_CallNoArgs(torch().get_num_threads.ptr())).cast<int>(); }

void* stream(const Tensor& tensor) {
  void* found = nullptr;
  const dlpack::Table* const table = torch().table;
  if (!table) {
    found = reinterpret_cast<void*>(torch().current_stream(tensor.device).attr("cuda_stream").cast<uintptr_t>());
  } else if (table->current_stream(static_cast<int>(tensor.kind), tensor.device, &found) != 0) {
    throw py::error_already_set();
  }
  return found;
}

Tensor contiguous(const Tensor& tensor) { return tensor.contiguous() ? tensor : called(tensor, "contiguous"); }

Tensor as(const Tensor& tensor, const Tensor& like) {
  return tensor.number == like.number ? tensor : read(tensor.object.attr("to")(like.object.attr("dtype")));
}

Tensor as_int64(const Tensor& tensor) { return tensor.number == kInt64 ? tensor : called(tensor, "long"); }

Tensor empty(const Tensor& like, std::initializer_list<int64_t> size, Number number, bool channels_last) {
  const int dims = static_cast<int>(size.size());
  int64_t strides[kMostDims], step = 1;
  for (int i = dims - 1; i >= 0; --i) {
    strides[i] = step;
    step *= std::max<int64_t>(size.begin()[i], 1);
  }
  if (channels_last) {
    const int64_t channels = std::max<int64_t>(size.begin()[1], 1);
    strides[1] = 1, strides[2] *= channels, strides[3] = channels;
  }
  py::tuple sizes(dims), steps(dims);
  for (int i = 0; i < dims; ++i) {
    sizes[i] = py::int_(size.begin()[i]);
    steps[i] = py::int_(strides[i]);
  }
  PyObject* const arguments[] = {like.object.ptr(), sizes.ptr(), steps.ptr(), torch().dtypes[number].ptr()};
  PyObject* const named = like.number == number ? nullptr : torch().dtype.ptr();
  return read(checked(PyObject_VectorcallMethod(torch().empty.ptr(), arguments, 3, named)));
}

py::tuple split(const Tensor& rows, const std::vector<int64_t>& sizes) {
  py::tuple numbers(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) numbers[i] = py::int_(sizes[i]);
  return checked(PyObject_CallMethodOneArg(rows.object.ptr(), torch().split.ptr(), numbers.ptr()));
}

py::object call(py::handle function, const py::tuple& arguments) {
  return checked(PyObject_CallObject(function.ptr(), arguments.ptr()));
}

bool try_integer(py::handle object, int64_t& integer) {
  if (!PyLong_CheckExact(object.ptr())) return false;
  integer = PyLong_AsLongLong(object.ptr());
  if (integer != -1 || !PyErr_Occurred()) return true;
  PyErr_Clear();
  return false;
}

bool try_number(py::handle object, double& number) {
  if (PyFloat_CheckExact(object.ptr())) {
    number = PyFloat_AS_DOUBLE(object.ptr());
    return true;
  }
  int64_t integer;
  if (!try_integer(object, integer)) return false;
  number = static_cast<double>(integer);
  return true;
}

bool try_integers(py::handle object, std::vector<int64_t>& integers) { return try_each(object, integers, try_integer); }

bool try_numbers(py::handle object, std::vector<double>& numbers) { return try_each(object, numbers, try_number); }

bool try_reduction(py::handle object, int& reduction) {
  if (!PyUnicode_CheckExact(object.ptr())) return false;
  const char* const known[] = {"none", "mean", "sum"};
  for (reduction = 0; reduction < 3; ++reduction) {
    if (PyUnicode_CompareWithASCIIString(object.ptr(), known[reduction]) == 0) return true;
  }
  return false;
}

bool names_backend(py::handle object, const char* backend) {
  if (!PyUnicode_CheckExact(object.ptr())) return false;
  if (PyUnicode_CompareWithASCIIString(object.ptr(), backend) == 0) return true;
  return PyUnicode_CompareWithASCIIString(object.ptr(), "auto") == 0 && !std::getenv("MIXFAST_BACKEND");
}

}  // namespace bind
}  // namespace mixfast
