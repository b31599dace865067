"""What runs inside the jail? It takes requests, one JSON line each, and answers each with one line.

Requests: `define` runs code as a module whose names persist; `call` calls one of its functions; `program` runs code as
a program on stdin and stdout; `tests` runs assertions against a function in another jail. This file is in the same
process as untrusted code: an answer proves only that the code could produce it.
"""

import atexit
import base64
import builtins
import contextlib
import io
import json
import os
import sys
import threading
import types
from typing import Any

REQUESTS, ANSWERS = 3, 4
STREAMS: list = []
"""The original stdout and stderr, even if the code replaces them."""
MAX_DEPTH = 50


def serve() -> int:
    """Answer requests until there are no more; the exit status is that of the last program."""
    sys.stdin, *STREAMS[:] = text_stream(0, "r"), text_stream(1, "w"), text_stream(2, "w")
    sys.stdout, sys.stderr = STREAMS
    os.environ.clear()
    requests = io.BufferedReader(io.FileIO(REQUESTS, closefd=False))
    answer({"status": "ready"})
    module = types.ModuleType("reply")
    code = 0
    while line := requests.readline():
        request = json.loads(line)
        try:
            result: dict[str, Any] = PERFORM[request["do"]](request, module, requests)
        except MemoryError:
            result = {"status": "memory", "detail": "memory used up"}
        except SystemExit as error:
            result, code = end_of_program(error, request["do"])
        except BaseException as error:
            result = {"status": "denied" if is_refusal(error) else "error", "detail": described(error)}
            if request["do"] == "call":
                result["raised"] = raised(error)
            code = 1
        flush()
        answer(result)
    return code


def text_stream(descriptor: int, mode: str) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, mode, closefd=False)
    buffered = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    return io.TextIOWrapper(buffered, encoding="utf-8", errors="replace")


def answer(result: dict) -> None:
    try:
        line = json.dumps(result).encode()
    except (ValueError, RecursionError, UnicodeError) as error:  # such as an integer too long to write
        line = json.dumps({"status": "error", "detail": described(error)}).encode()
    line += b"\n"
    while line:
        line = line[os.write(ANSWERS, line) :]


def flush() -> None:
    for stream in (sys.stdout, sys.stderr, *STREAMS):
        with contextlib.suppress(BaseException):  # closed or replaced by the code
            stream.flush()


def described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except BaseException:  # `__str__` is untrusted code too
        return type(error).__name__


def raised(error: BaseException) -> dict:
    """Names of the built-in classes of an exception, its own class first, and its text."""
    names = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    try:
        return {"names": names, "text": str(error)[:500]}
    except BaseException:  # `__str__` is untrusted code too
        return {"names": names, "text": ""}


def is_refusal(error: BaseException) -> bool:
    """Whether a layer of the jail refused something."""
    return isinstance(error, PermissionError)


def end_of_program(error: SystemExit, what: str) -> tuple:
    code = error.code if isinstance(error.code, int) else int(error.code is not None)
    if what == "program" and code == 0:
        return {"status": "ok"}, 0
    return {"status": "error", "detail": f"exit status {code}"}, code


def define(request: dict, module: types.ModuleType, _: object) -> dict:
    exec(compile(request["code"], "reply", "exec"), module.__dict__)
    return {"status": "ok"}


def call(request: dict, module: types.ModuleType, _: object) -> dict:
    function = module.__dict__.get(request["name"])
    if not callable(function):
        return {"status": "error", "detail": f"no function {request['name']}"}
    arguments = [unpack(argument) for argument in request["arguments"]]
    keywords = {keyword: unpack(value) for keyword, value in request.get("keywords", {}).items()}
    result = {"status": "ok", "value": pack(function(*arguments, **keywords))}
    if request.get("changes"):
        with contextlib.suppress(TypeError):  # the function put something into them that cannot be packed
            result["changed"] = [pack(argument) for argument in (*arguments, *keywords.values())]
    return result


def program(request: dict, _: types.ModuleType, __: object) -> dict:
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv = ["program"]
    try:
        exec(compile(request["code"], "program", "exec"), main.__dict__)
    finally:  # as the interpreter does at exit
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
    return {"status": "ok"}


def tests(request: dict, module: types.ModuleType, requests: io.BufferedReader) -> dict:
    """Run the test code and its function `check` on a stand-in for the candidate, whose calls go to the other jail."""
    num_calls = 0

    def candidate(*arguments: object, **keywords: object) -> object:
        nonlocal num_calls
        num_calls += 1
        packed = {keyword: pack(value) for keyword, value in keywords.items()}
        answer({"call": [pack(argument) for argument in arguments], "keywords": packed})
        reply = json.loads(requests.readline())
        if reply["status"] == "error" and (error := error_like(reply.get("raised"))):
            raise error
        if reply["status"] != "ok":
            raise AssertionError(f"the candidate ended with {reply['status']}: {reply.get('detail', '')}")
        for argument, changed in zip((*arguments, *keywords.values()), reply.get("changed", ()), strict=False):
            change_to(argument, unpack(changed))
        return unpack(reply["value"])

    exec(compile(request["code"], "tests", "exec"), module.__dict__)
    module.__dict__[request["name"]] = candidate  # some tests call the function by its own name
    module.__dict__["check"](candidate)
    if not num_calls:
        return {"status": "error", "detail": "no test called the function"}
    return {"status": "ok", "num_calls": num_calls}


def error_like(described_error: Any) -> Exception | None:
    """The built-in exception nearest to the one that was raised in the other jail; None if there is none."""
    if not isinstance(described_error, dict):
        return None
    for name in described_error.get("names", ()):
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            with contextlib.suppress(TypeError):  # a class that needs more than a text
                return kind(str(described_error.get("text", "")))
    return None


def change_to(argument: Any, changed: Any) -> None:
    """Make a list, set or dict contain what the function in the other jail left in it."""
    if type(argument) is not type(changed):
        return
    if isinstance(argument, list):
        argument[:] = changed
    elif isinstance(argument, dict | set):
        argument.clear()
        argument.update(changed)


PERFORM = {"define": define, "call": call, "program": program, "tests": tests}


def pack(value: Any, depth: int = 0) -> Any:
    """The value as JSON, with tags for other types than JSON's. Types are exact: a subclass could equal everything."""
    if depth > MAX_DEPTH:
        raise TypeError("value is nested too deep")
    kind = type(value)
    if kind in (int, float, str, bool, type(None)):
        return value
    if kind is list:
        return [pack(item, depth + 1) for item in value]
    if kind is dict:
        return {"dict": [[pack(key, depth + 1), pack(item, depth + 1)] for key, item in value.items()]}
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [pack(item, depth + 1) for item in value]}
    if kind is bytes:
        return {"bytes": base64.b64encode(value).decode()}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    raise TypeError(f"returned a {kind.__name__}, which cannot leave the sandbox")


def unpack(value: Any) -> Any:
    """The inverse of `pack`. Raises `ValueError` and `TypeError` for anything that `pack` does not make."""
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("not a packed value")
    ((name, content),) = value.items()
    if name == "dict":
        return {unpack(key): unpack(item) for key, item in content}
    if name in ("tuple", "set", "frozenset"):
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[name](map(unpack, content))
    if name == "bytes":
        return base64.b64decode(content)
    if name == "complex":
        return complex(*content)
    raise ValueError(f"{name!r} is no packed type")
