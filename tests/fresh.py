"""Code in a process of its own that has imported torch and nothing of ours, for what an import or an environment does.

To import torch takes longer than all that such a test does: one process does it, and forks for every piece of code.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

#: Reads requests, a line each, and answers with exit codes. The child is what ``python -c`` would be.
_SERVER = """
import atexit, json, os, signal, sys

import torch

paths, answers = sys.path[1:], os.dup(1)


def child(asked):
    signal.alarm(asked["seconds"])
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.path[:] = ["", *filter(None, asked["env"].get("PYTHONPATH", "").split(os.pathsep)), *paths]
    for fd, name in enumerate(asked["files"]):
        os.dup2(os.open(name, os.O_RDWR), fd)
    code = 0
    try:
        exec(compile(asked["code"], "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


while line := sys.stdin.readline():
    pid = os.fork()
    if pid == 0:
        child(json.loads(line))
    os.write(answers, f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\\n".encode())
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )  # it ends with its stdin


def run_fresh(
    code: str, cwd: Path | None = None, env: dict[str, str] | None = None, seconds: int = 120
) -> subprocess.CompletedProcess[str]:
    """``python -c code``, killed after so many ``seconds``."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        files = [os.devnull, out.name, err.name]
        env = dict(os.environ) if env is None else env
        asked = {"code": code, "cwd": str(cwd or Path.cwd()), "env": env, "files": files, "seconds": seconds}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        returned = int(server.stdout.readline())
        return subprocess.CompletedProcess(code, returned, out.read(), err.read())


def as_module(name: str, *arguments: str) -> str:
    """The code of ``python -m name arguments``."""
    return (
        f"import runpy, sys\nsys.argv = {[name, *arguments]!r}\n"
        f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)\n"
    )
