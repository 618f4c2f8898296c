"""Triton's interpreter without what it does in vain: a plugin for the process of test_triton_interpreted.py."""

from typing import Any

from triton.runtime import interpreter

# Without its debug option it computes of each sum and product of integers whether it overflows, and drops the answer.
interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)

# It looks up the NumPy type of each value in a table that it makes anew.
numpy_type, numpy_types = interpreter._get_np_dtype, dict[str, Any]()


def numpy_type_by_name(kind: Any) -> Any:
    name = kind.scalar.name
    if name not in numpy_types:
        numpy_types[name] = numpy_type(kind)
    return numpy_types[name]


interpreter._get_np_dtype = numpy_type_by_name

# At each call of one kernel function by another it replaces the functions of triton.language anew; the first call of a
# function of the same module, in the same launch, has done that.
launch, call = interpreter.GridExecutor.__call__, interpreter.InterpretedFunction.__call__
called_modules: set[str] = set()


def launch_anew(self: Any, *args: Any, **options: Any) -> None:
    called_modules.clear()
    launch(self, *args, **options)


def call_as_replaced(self: Any, *args: Any, **options: Any) -> Any:
    if self.fn.__module__ in called_modules:
        return self.rewrite()(*args, **options)
    called_modules.add(self.fn.__module__)
    return call(self, *args, **options)


interpreter.GridExecutor.__call__ = launch_anew
interpreter.InterpretedFunction.__call__ = call_as_replaced
