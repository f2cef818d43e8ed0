"""A warm process: forks workers on command. JSON lines in, JSON lines out (`{"pid"}` and `{"pid", "code"}`)."""

import json
import os
import runpy
import select
import signal
import sys
import traceback

sys.setrecursionlimit(5000)
import distroml.runtime.warm  # noqa: E402, F401

commands = os.fdopen(os.dup(0), "rb", buffering=0)
answers = os.fdopen(os.dup(1), "w", buffering=1)
wake_read, wake_write = os.pipe()
os.set_blocking(wake_write, False)
signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
signal.signal(signal.SIGCHLD, lambda *_: None)


def child(order: dict) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.environ.update(order["env"])
    sys.argv = order["argv"]
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    import atexit

    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


print(json.dumps({"ready": os.getpid()}), file=answers)
pending = b""
while True:
    readable, _, _ = select.select([commands, wake_read], [], [])
    if wake_read in readable:
        os.read(wake_read, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            print(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}), file=answers)
    if commands in readable:
        data = commands.read(65536)
        if not data:
            break
        pending += data
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            pid = os.fork()
            if pid == 0:
                child(json.loads(line))
            print(json.dumps({"pid": pid}), file=answers)
