"""A process that calls reward functions, one call at a time, for the process that started it.

It gets ``Orders`` and answers with None, or with why a function can't be loaded; then it gets calls
``(number of the function, prompt, answer, row)`` and answers each with a float, or with what went
wrong in words. It ends with its parent's side of the connection.
"""

import importlib
import importlib.util
import inspect
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from megalite.stages.rules.ready import READY, Rule, Settings, ready_rule

LONGEST = 200  # characters of an error that are said
LARGEST = 3.4028234663852886e38  # finite number of fp32, in which scores are learned from
GRACE_S = 5.0  # beyond the limit, after which a worker ends that nobody waits for


@dataclass(frozen=True)
class Orders:
    """What a worker is to call.

    Attributes:
        functions: names of ready functions, or ``file.py:name``.
        settings: of the ready ones.
        limit_s: seconds of a call.
    """

    functions: Sequence[str]
    settings: Settings
    limit_s: float


def main(descriptor: int) -> None:
    """Serve calls on the connection of this file descriptor until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is asked, and closes the connection
    os.dup2(2, 1)  # what a function prints is no output of the command
    connection, own = Connection(descriptor), os.getpid()
    try:
        orders: Orders = connection.recv()
        functions, fault = _loaded(orders)
        connection.send(fault)
        while True:
            number, *call = connection.recv()
            # whatever the call hangs in, the kernel ends it where the parent can't
            signal.setitimer(signal.ITIMER_REAL, orders.limit_s + GRACE_S)
            reply = _score(functions[number], call)
            if os.getpid() != own:
                os._exit(0)  # a fork of the function's, which came back: its parent replies
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(reply)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _loaded(orders: Orders) -> tuple[list[Rule], str | None]:
    """The functions, or which can't be loaded and why."""
    functions: list[Rule] = []
    modules: dict[str, ModuleType] = {}
    for name in orders.functions:
        if name in READY:
            functions.append(ready_rule(name, orders.settings))
            continue
        path, _, attribute = name.rpartition(":")
        try:
            if path not in modules:
                modules[path] = _module(path)
            functions.append(_function(modules[path], attribute))
        except BaseException as error:  # whatever a user's file raises
            return [], f"{name}: {_said(error, path)}"
    return functions, None


def _module(path: str) -> ModuleType:
    """A user's file as a module; it can import what lies beside it, by its package too."""
    file = Path(path).resolve()
    package = file.parent
    while (package / "__init__.py").is_file():
        package = package.parent
    for folder in (package, file.parent):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    parts = file.relative_to(package).with_suffix("").parts
    if len(parts) > 1 and all(part.isidentifier() for part in parts):
        return importlib.import_module(".".join(parts))
    spec = importlib.util.spec_from_file_location(f"reward_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _function(module: ModuleType, name: str) -> Rule:
    """A function of three arguments.

    Raises:
        LoadError: there is none.
    """
    function: Any = getattr(module, name, None)
    if not callable(function):
        own = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise LoadError(f"there is no such function; the file has {', '.join(own) or 'none'}")
    try:
        inspect.signature(function).bind("", "", {})
    except TypeError:
        taken = inspect.signature(function)
        raise LoadError(f"must take (prompt, answer, row), takes {taken}") from None
    except ValueError:
        pass  # a builtin without a signature; its first call tells
    return function


class LoadError(Exception):
    """A function that can't be used; the message says why."""


def _score(function: Rule, call: Sequence[Any]) -> float | str:
    """The function's number, or what went wrong."""
    try:
        value: Any = function(*call)
    except BaseException as error:  # whatever a user's function raises
        code = getattr(function, "__code__", None)
        return _said(error, code.co_filename if code else "")
    if (
        isinstance(value, str)
        or not hasattr(value, "__float__")
        and not hasattr(value, "__index__")
    ):
        return f"gave {_short(repr(value))}, which is not a number"
    try:
        number = float(value)
    except Exception as error:  # of a user's own type, or a tensor of several numbers
        return f"gave {_short(repr(value))}, which is not a number: {_said(error, '')}"
    return (
        number if abs(number) <= LARGEST else f"gave {number}, which is not a finite number of fp32"
    )


def _said(error: BaseException, path: str) -> str:
    """An exception in one line, with the last line of ``path`` that it went through."""
    if isinstance(error, LoadError):
        return str(error)
    file = os.path.realpath(path) if path else ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if file and os.path.realpath(f.filename) == file]
    if isinstance(error, SyntaxError) and error.filename and not lines:
        lines = [error.lineno]
    at = f" in line {lines[-1]}" if lines and lines[-1] else ""
    text = _short(" ".join(str(error).split()))
    return f"raised {type(error).__name__}{': ' if text else ''}{text}{at}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
