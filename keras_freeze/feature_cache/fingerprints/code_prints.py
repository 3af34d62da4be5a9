"""Fingerprints of code: a version for installed packages, the instructions for the user's own."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
import sysconfig
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from keras_freeze.feature_cache.fingerprints.plain_values import (
    Print,
    UnknownContentError,
    plain,
    print_of,
)

INSTALLED = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")]


@functools.cache
def version_of_package(module: str) -> str | None:
    """Returns the version of the installed package that holds a module; None for own code."""
    root = module.split(".")[0]
    if root in sys.builtin_module_names or root in sys.stdlib_module_names:
        return sys.version.split()[0]
    loaded = sys.modules.get(root)
    file = getattr(loaded, "__file__", None)
    if file is None:
        return None
    for name in (root, root.replace("_", "-")):
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        # An editable package lies elsewhere: its code may change under the same version.
        return found.version if _is_below(file, str(found.locate_file(""))) else None
    version = getattr(loaded, "__version__", None)  # its distribution has another name
    is_installed = any(_is_below(file, path) for path in INSTALLED)
    return str(version) if version is not None and is_installed else None


def _is_below(file: str, folder: str) -> bool:
    return Path(file).is_relative_to(folder)


def class_print(kind: type) -> Print:
    """Returns the fingerprint of a class: of the methods that the user wrote, and its bases.

    Raises:
        UnknownContentError: its methods use something whose content can't be read.
    """
    return print_of(_Reader().of_class(kind))


def function_print(function: Any) -> Print:
    """Returns the fingerprint of a function, with what it uses from outside.

    Raises:
        UnknownContentError: it uses something whose content can't be read.
    """
    return print_of(_Reader().other(function))


def attribute_print(value: Any) -> Print:
    """Returns the fingerprint of an attribute of an own layer.

    Raises:
        UnknownContentError: its content can't be read.
    """
    return print_of(plain(value, _Reader().other))


class _Reader:
    """Reads classes and functions, each once."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def other(self, value: Any) -> Any:
        """Returns code as plain values."""
        if isinstance(value, ModuleType):
            return ("module", value.__name__, version_of_package(value.__name__))
        if isinstance(value, functools.partial):
            parts = value.args, value.keywords
            return ("partial", self.other(value.func), plain(parts, self.other))
        if isinstance(value, staticmethod | classmethod):
            return self.other(value.__func__)
        if isinstance(value, property | functools.cached_property):
            getter = value.fget if isinstance(value, property) else value.func
            return ("property", self.other(getter))
        if isinstance(value, MethodType):
            return ("method", self.other(value.__func__))
        if isinstance(value, type):
            return self.of_class(value)
        if isinstance(value, FunctionType):
            return self.of_function(value)
        if isinstance(value, BuiltinFunctionType):
            return (str(value.__module__), value.__qualname__)
        if isinstance(value, CodeType):
            return self.of_code(value)
        return self.of_object(value)

    def of_object(self, value: Any) -> Any:
        """Returns an object of an installed class, such as an initializer, as its settings."""
        kind = type(value)
        if version_of_package(kind.__module__) is None or not hasattr(value, "get_config"):
            name = f"{kind.__module__}.{kind.__qualname__}"
            raise UnknownContentError(f"an object of type {name}")
        return (self.of_class(kind), plain(value.get_config(), self.other))

    def of_class(self, kind: type) -> Any:
        name = f"{kind.__module__}.{kind.__qualname__}"
        version = version_of_package(kind.__module__)
        if version is not None:
            return (name, version)
        if id(kind) in self.seen:
            return ("seen", self.seen[id(kind)])
        self.seen[id(kind)] = len(self.seen)
        members = sorted(vars(kind).items())
        code = [(key, plain(value, self.other)) for key, value in members if _is_read(key, value)]
        return (kind.__qualname__, code, [self.of_class(base) for base in kind.__bases__])

    def of_function(self, function: FunctionType) -> Any:
        version = version_of_package(function.__module__ or "")
        if version is not None:
            return (function.__module__, function.__qualname__, version)
        if id(function) in self.seen:
            return ("seen", self.seen[id(function)])
        self.seen[id(function)] = len(self.seen)
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        around = {
            name: plain(function.__globals__[name], self.other)
            for name in sorted(_names(function.__code__))
            if name in function.__globals__
        }
        given = function.__defaults__, function.__kwdefaults__, cells
        return (self.of_code(function.__code__), plain(given, self.other), tuple(around.items()))

    def of_code(self, code: CodeType) -> Any:
        constants = tuple(plain(constant, self.other) for constant in code.co_consts)
        return (code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars)


def _is_read(name: str, value: Any) -> bool:
    """Returns True for what a class defines itself, as opposed to what Python adds to it."""
    is_added = name in ("__module__", "__dict__", "__weakref__", "__doc__", "__annotations__")
    return not is_added and not name.startswith(
        ("__static_", "__firstlineno", "_abc_", "__abstract")
    )


def _is_filled(cell: Any) -> bool:
    try:
        kind = type(cell.cell_contents)
    except ValueError:
        return False
    return kind is not type or cell.cell_contents is not type


def _names(code: CodeType) -> set[str]:
    """Returns the names that code and the functions in it use."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))
