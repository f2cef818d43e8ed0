"""The template: a process that has imported torch and forks workers from itself in milliseconds.

A program of its own, run by file path by the agent with the workers' interpreter. Requests come on standard input
(four bytes of big-endian length, then a JSON `LaunchOrder`), answers go to standard output, one JSON line each:
`ready` once, then `started` or `refused` per request. It ends when its standard input does.

It stays single-threaded, since only then a fork is sound, and never touches an accelerator. A worker forked from it
runs like `python script.py`: same `sys.path[0]`, `__main__`, exit codes, tracebacks and clean-up.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import struct
import sys
import threading
import time
import types
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

if TYPE_CHECKING:
    from distroml.agent.launch import LaunchOrder

# What a training script needs sooner or later; the lazy ones cost a worker 2-3 s at its first optimizer step.
PREIMPORTS = (
    "numpy",
    "numpy.random",
    "torch",
    "torch.distributed",
    "torch.utils.data",
    "torch.nn.parallel",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch._dynamo",
    "distroml.workerlink",
    "distroml.runtime",
)
_LENGTH = struct.Struct(">I")
_NICE = 10


def serve(requests: int, replies: int) -> LaunchOrder | None:
    """Answer requests; returns an order in a forked worker, None in the template when the agent is gone."""
    with _our_package():
        from distroml.agent.launch import launch
    while (body := _read_request(requests)) is not None:
        order = cast("LaunchOrder", json.loads(body))
        if (threads := _threads()) > 1:
            _reply(replies, {"op": "refused", "why": f"the warm process has {threads} threads: forking it is unsound"})
            continue
        try:
            pid = os.fork()
        except OSError as error:
            _reply(replies, {"op": "refused", "why": f"cannot fork: {error.strerror}"})
            continue
        if pid == 0:
            os.close(requests)
            launch(order, replies)
            return order
    return None


def preimport() -> dict[str, object]:
    """Import what workers will need, at low priority: the way to say how long it took and what was missing."""
    missing: list[str] = []

    def run() -> None:
        # A thread's niceness is its own, and going back is not allowed to everyone: so it ends with the thread.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        for name in PREIMPORTS:
            try:
                importlib.import_module(name)
            except ImportError as error:
                missing.append(f"{name}: {error}")
            except Exception as error:  # a broken package must not take the others along
                missing.append(f"{name}: {type(error).__name__}: {error}")

    began = time.monotonic()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    until = time.monotonic() + 5
    while _threads() > 1 and time.monotonic() < until:
        time.sleep(0.001)
    gc.collect()
    gc.freeze()
    return {"op": "ready", "seconds": time.monotonic() - began, "missing": missing, "threads": _threads()}


def run_program(order: LaunchOrder) -> NoReturn:
    """Run the worker's program as `python` would, and end the process with the code that `python` would."""
    try:
        _run(order)
        code = 0
    except SystemExit as error:
        code = _exit_code(error)
    _end(code)


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    with contextlib.suppress(Exception):
        print(error.code, file=sys.stderr)
    return 1


def _end(code: int) -> NoReturn:
    """What the interpreter does at its end, but for taking every object apart.

    That would copy most of the pages that the fork shares: over a second of CPU for each worker.
    """
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    # There is no public name for what the interpreter itself calls here.
    getattr(atexit, "_run_exitfuncs")()  # noqa: B009
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _run(order: LaunchOrder) -> None:
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(order["env"])
    _fresh_randomness()
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    main.__dict__["__builtins__"] = sys.modules["builtins"]
    argv = order["argv"]
    try:
        if argv[0] == "-m":
            _run_module(argv[1], argv[2:])
        else:
            _run_script(main, argv)
    except SystemExit:
        raise
    except KeyboardInterrupt as error:
        _show(error)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        _show(error)
        raise SystemExit(1) from None


def _run_script(main: types.ModuleType, argv: list[str]) -> None:
    script = argv[0]
    sys.argv = list(argv)
    if script == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *argv[2:]]
        exec(compile(argv[1], "<string>", "exec"), main.__dict__)
        return
    if os.path.isdir(script):
        import runpy

        runpy.run_path(script, run_name="__main__")
        return
    try:
        with open(script, "rb") as file:
            source = file.read()
    except OSError as error:
        reason = f"[Errno {error.errno}] {error.strerror}"
        sys.stderr.write(f"{sys.executable}: can't open file {os.path.abspath(script)!r}: {reason}\n")
        raise SystemExit(2) from None
    path = os.path.abspath(script)
    sys.path.insert(0, os.path.dirname(os.path.realpath(script)))
    from importlib.machinery import SourceFileLoader

    main.__dict__.update(__file__=path, __cached__=None, __loader__=SourceFileLoader("__main__", path))
    exec(compile(source, path, "exec"), main.__dict__)


def _run_module(module: str, arguments: list[str]) -> None:
    import runpy

    sys.argv = ["-m", *arguments]
    sys.path.insert(0, os.getcwd())
    # What the interpreter itself calls for `-m`: the module stays in place as `__main__` until the process ends.
    getattr(runpy, "_run_module_as_main")(module, alter_argv=True)  # noqa: B009


def _show(error: BaseException) -> None:
    """The traceback without the frames of this file, by the program's own `sys.excepthook`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
        trace = trace.tb_next
    # As the interpreter leaves it for whoever cleans up: the program did not end well.
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    sys.excepthook(type(error), error.with_traceback(trace), trace)


def _fresh_randomness() -> None:
    # Python reseeds its own generator after a fork; numpy's global one would be the same in every worker.
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.__dict__["seed"]()


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _read_request(fd: int) -> bytes | None:
    header = _read_exactly(fd, _LENGTH.size)
    return None if header is None else _read_exactly(fd, _LENGTH.unpack(header)[0])


def _read_exactly(fd: int, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        part = os.read(fd, count - len(data))
        if not part:
            return None
        data += part
    return data


def _reply(fd: int, message: dict[str, object]) -> None:
    os.write(fd, json.dumps(message).encode() + b"\n")


@contextlib.contextmanager
def _our_package():
    """`distroml.agent` importable, also for an interpreter in which it is not installed; the path stays clean."""
    root = str(Path(__file__).resolve().parents[2])
    added = root not in sys.path
    if added:
        sys.path.append(root)
    try:
        yield
    finally:
        if added:
            sys.path.remove(root)


def main() -> None:
    """Import, then fork on request until the agent is gone."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    # Nothing that an import prints may get between the answers.
    os.dup2(2, 1)
    # The kernel reaps the holders forked here; each of them takes the default back.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _our_package():
        from distroml.agent.launch import die_with_parent
    die_with_parent()
    # The folder of this file was put there by the interpreter; no program of a user may import from it.
    del sys.path[0]
    _reply(replies, preimport())
    order = serve(requests, replies)
    if order is not None:
        run_program(order)
    # Skip the clean-up of everything imported: nothing here has anything to lose.
    os._exit(0)


if __name__ == "__main__":
    main()
