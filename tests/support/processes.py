"""Python processes that start quickly: forks of a process that has imported the large libraries."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

# Runs code as `python -c` does: the fork leaves the loop, and the code ends the interpreter itself.
# `stars_engine.cli` is not imported here: it looks at the standard streams when it is imported.
_SERVER = """
import gc, json, os, sys
import jinja2, rich.progress, rich.table, torch, transformers, typer
import stars_engine.backends.transformers, stars_engine.rewards.classifier
torch.set_num_threads(1)
gc.freeze()  # a fork that ends would copy all these objects to look for garbage
requests, replies = open({requests}), open({replies}, "w")
for line in iter(requests.readline, ""):
    request = json.loads(line)
    if not (child := os.fork()):
        break
    replies.write(f"{{child}}\\n"); replies.flush()
    _, status = os.waitpid(child, 0)
    replies.write(f"{{os.waitstatus_to_exitcode(status)}}\\n"); replies.flush()
else:
    os._exit(0)
requests.close(); replies.close()
for number, name in enumerate(("stdin", "stdout", "stderr")):
    flags = os.O_RDONLY if number == 0 else os.O_WRONLY
    os.dup2(os.open(os.path.join(request["folder"], name), flags), number)
# As Python opens them when it starts: streams remember whether their file can seek.
sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
os.chdir(request["cwd"])
os.environ.clear()
os.environ.update(request["env"])
sys.argv = ["-c", *request["args"]]
sys.path[0] = request["path"]
namespace = {{"__name__": "__main__"}}
if request["path"]:
    namespace["__file__"] = request["name"]
exec(compile(request["code"], request["name"], "exec"), namespace)
"""


class _Server:
    """The process that is forked."""

    def __init__(self) -> None:
        request_end, self._requests = os.pipe()
        self._replies, reply_end = os.pipe()
        code = _SERVER.format(requests=request_end, replies=reply_end)
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(request_end, reply_end),
        )
        os.close(request_end)
        os.close(reply_end)
        atexit.register(self._end)

    def _end(self) -> None:
        os.close(self._requests)
        self._process.wait(30)
        os.close(self._replies)

    def run(self, request: dict[str, object], timeout_s: float) -> int:
        os.write(self._requests, json.dumps(request).encode() + b"\n")
        child = self._reply(timeout_s)
        try:
            return self._reply(timeout_s)
        except TimeoutError:
            os.kill(child, 9)
            self._reply(30)
            raise

    def _reply(self, timeout_s: float) -> int:
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._replies], [], [], timeout_s)[0]:
                raise TimeoutError(f"no answer within {timeout_s} s")
            line += os.read(self._replies, 1) or b"-1\n"
        return int(line)


_server = cache(_Server)


def run_python(
    code: str,
    *args: str,
    stdin: str | bytes = "",
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    script: Path | None = None,
    stdout: str | None = None,
    stderr: str | None = None,
    timeout_s: float = 240.0,
) -> subprocess.CompletedProcess[str]:
    """Run code as `python -c code args` does, without the time that imports take.

    Args:
        code: The code.
        *args: The arguments, for `sys.argv`.
        stdin: The text of the standard input, or its bytes.
        cwd: The working directory; by default that of this process.
        env: All environment variables; by default those of this process. Those that Python itself
            reads when it starts, such as PYTHONIOENCODING, have no effect.
        script: The file that the code is from; None for `-c`.
        stdout: The path of a device for the standard output; None: it is returned.
        stderr: The same for the standard error.
        timeout_s: After how many seconds the process is killed, in seconds.

    Raises:
        TimeoutError: The process took longer.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = Path(folder)
        given = stdin.encode() if isinstance(stdin, str) else stdin
        (streams / "stdin").write_bytes(given)
        devices = {"stdout": stdout, "stderr": stderr}
        for name, device in devices.items():
            (streams / name).symlink_to(device) if device else (streams / name).touch()
        request = {
            "code": code,
            "args": args,
            "folder": folder,
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ) if env is None else env,
            "name": str(script or "<string>"),
            "path": str(script.parent) if script else "",
        }
        status = _server().run(request, timeout_s)
        read = [
            "" if device else (streams / name).read_text("utf-8", errors="surrogateescape")
            for name, device in devices.items()
        ]
    return subprocess.CompletedProcess([code, *args], status, *read)


COMMAND = [sys.executable, "-c", "from stars_engine.cli import main; main()"]


def stars(*args: str, columns: int = 200, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command `stars`; the options are those of `run_python`."""
    env = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1"}
    return run_python(COMMAND[-1], *args, env=env, **options)
