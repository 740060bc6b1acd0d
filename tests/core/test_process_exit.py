"""Process exit during generation, and forks, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from benchmarks import interruptions
from stars_engine.threads.process_exit import EXIT_S
from tests.support.processes import run_python

HEAD = """
import asyncio, os, signal, sys, threading, time
import torch
from stars_engine import *
torch.set_num_threads(1)
engine = StarsEngine.shared().load()
never = AlignParams(schedule=ConstantSchedule(value=1e9), max_attempts=10**6)
work = dict(sampling=SamplingParams(seed=1, max_tokens=400, n=8), align=never)
working, in_reward = threading.Event(), threading.Event()
def later(what):
    threading.Thread(target=lambda: (working.wait(), what())).start()
def mark():
    while not engine.stats().num_steps:
        time.sleep(0.01)
    print(time.time(), flush=True)
    working.set()
threading.Thread(target=mark, daemon=True).start()
"""


def run(code: str) -> tuple[int, float, str]:
    """Return exit code, seconds from the first step to the end, and standard error.

    The work would take an hour or more; the limit of the caller leaves room for a busy machine.
    """
    done = run_python(HEAD + code, timeout_s=120)
    first_step_s = float(done.stdout.split()[0]) if done.stdout.split() else time.time()
    return done.returncode, time.time() - first_step_s, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("future = engine.submit('The', **work); working.wait(); sys.exit(3)", 3),
        (
            "threading.Thread(target=lambda: engine.generate('The', **work), daemon=True).start()\n"
            "working.wait(); raise RuntimeError('boom')",
            1,
        ),
        ("later(lambda: os.kill(os.getpid(), signal.SIGINT)); engine.generate('The', **work)", -2),
        (
            "later(lambda: os.kill(os.getpid(), signal.SIGTERM)); engine.generate('The', **work)",
            -15,
        ),
        (
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
            "later(lambda: os.kill(os.getpid(), signal.SIGTERM)); engine.generate('The', **work)",
            7,
        ),
        (
            "async def main():\n"
            "    task = asyncio.create_task(engine.agenerate('The', **work))\n"
            "    await asyncio.to_thread(working.wait)\n"
            "    raise ValueError('in main')\n"
            "asyncio.run(main())",
            1,
        ),
        (
            "for event in engine.stream('The', sampling=SamplingParams(max_tokens=400)):\n"
            "    time.sleep(0.2); sys.exit(5)",
            5,
        ),
        (
            "config = StarsConfig(model='stars:embedded-lm', align=never,\n"
            "    reward=lambda prompt, completion: in_reward.set() or time.sleep(1000) or 1.0)\n"
            "StarsEngine.shared(config).submit('The'); in_reward.wait(); sys.exit(6)",
            6,
        ),
        (
            "def reward(prompt, completion):\n"
            "    in_reward.set()\n"
            "    while True: torch.linalg.svd(torch.randn(200, 200))\n"
            "config = StarsConfig(model='stars:embedded-lm', align=never, reward=reward)\n"
            "StarsEngine.shared(config).submit('The'); in_reward.wait(); sys.exit(4)",
            4,
        ),
        (
            "def reward(prompt, completion):\n"
            "    in_reward.set()\n"
            "    while True:\n"
            "        try: torch.linalg.svd(torch.randn(200, 200))\n"
            "        except BaseException: pass\n"
            "config = StarsConfig(model='stars:embedded-lm', align=never, reward=reward)\n"
            "StarsEngine.shared(config).submit('The'); in_reward.wait(); sys.exit(4)",
            4,
        ),
        (
            "in_prefill = threading.Event()\n"
            "layer = engine.model.model.model.layers[0]\n"
            "def slow(*_):\n"
            "    print(time.time(), flush=True)\n"
            "    in_prefill.set()\n"
            "    for _ in range(10**6): torch.linalg.svd(torch.randn(100, 100))\n"
            "engine.generate('The', sampling=SamplingParams(max_tokens=4))\n"
            "layer.register_forward_pre_hook(slow)\n"
            "engine.submit('This movie', **work); in_prefill.wait(); sys.exit(8)",
            8,
        ),
        (
            "threading.Thread(target=lambda: engine.generate('The', **work)).start()\n"
            "working.wait(); raise RuntimeError('boom')",
            1,
        ),
        (
            "async def main():\n"
            "    later(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
            "    await asyncio.to_thread(engine.generate, 'The', **work)\n"
            "asyncio.run(main())",
            -2,
        ),
        (
            "async def main():\n"
            "    later(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
            "    stream = engine.stream('The', **work)\n"
            "    await asyncio.to_thread(list, stream)\n"
            "asyncio.run(main())",
            -2,
        ),
        (
            "from stars_engine import RegexGrammar; from stars_engine.grammars import Grammars\n"
            "def slow(*_):\n"
            "    print(time.time(), flush=True)\n"
            "    in_reward.set()\n"
            "    time.sleep(1000)\n"
            "Grammars.allowed = slow\n"
            "sampling = SamplingParams(grammar=RegexGrammar(pattern='a+'))\n"
            "engine.submit('The', sampling=sampling); in_reward.wait(); sys.exit(2)",
            2,
        ),
        (
            "StarsEngine().submit('The'); print(time.time(), flush=True)\n"
            "time.sleep(0.05); sys.exit(9)",
            9,
        ),
    ],
    ids=[
        "exit",
        "exception",
        "sigint",
        "sigterm",
        "handler",
        "asyncio",
        "stream",
        "hung reward",
        "reward in torch",
        "reward in torch that cannot be interrupted",
        "long prefill",
        "non-daemon caller",
        "to_thread",
        "stream in to_thread",
        "slow grammar",
        "cold load",
    ],
)
def test_the_process_exits_cleanly(code: str, status: int) -> None:
    returncode, seconds, stderr = run(code)
    assert returncode == status, stderr
    assert seconds < EXIT_S + 20, stderr  # the exit waits for EXIT_S; the rest is the test's own
    assert "terminate called" not in stderr
    assert "Fatal Python error" not in stderr


@pytest.mark.slow
def test_a_fork_gets_a_clear_error_and_may_load_again() -> None:
    code = """
engine.generate('The', sampling=SamplingParams(max_tokens=4))
child = os.fork()
if not child:
    try:
        engine.generate('The')
    except EngineForkedError as error:
        fresh = StarsEngine.shared()
        text = fresh.generate('The', sampling=SamplingParams(max_tokens=4))[0].text
        os._exit(11 if 'spawn' in str(error) and text else 12)
_, status = os.waitpid(child, 0)
engine.generate('The', sampling=SamplingParams(max_tokens=4))
sys.exit(os.waitstatus_to_exitcode(status))
"""
    returncode, _, stderr = run(code)
    assert returncode == 11, stderr


@pytest.mark.slow
def test_engines_inherited_by_a_fork_raise_and_never_hang() -> None:
    code = """
never = never.replace(max_attempts=10**9)
stream = engine.stream('The', **work)
future = engine.submit('The', **work)
private = StarsEngine(model=engine.model, reward=engine.reward)
locks = [engine._runtime._lock, engine._runtime._loop.admission._lock, stream._event_queue._lock]
for lock in locks:
    lock.acquire()  # as another thread may have done
child = os.fork()
if child:
    for lock in locks:
        lock.release()
else:
    signal.alarm(20)
    calls = [
        lambda: next(stream), stream.cancel, future.result, future.exception, engine.stats,
        lambda: engine.generate('The'), lambda: engine.submit('The'), engine.load,
        lambda: engine.model, lambda: asyncio.run(engine.agenerate('The')),
        lambda: private.generate('The'),
    ]
    for call in calls:
        try:
            call()
        except EngineForkedError:
            continue
        os._exit(12)
    stream.close()
    private.close()
    engine.close()
    del stream, private, engine
    os._exit(11)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    returncode, _, stderr = run(code)
    assert returncode == 11, stderr


WORKER = """
import sys
from stars_engine.threads import process_exit
class Worker:
    threads = ()
    def close(self, *, wait, at_once):
        exec("compiled = 'and run, as imports do'")  # Python forgets that it was interrupted
worker = Worker()
process_exit.register(worker)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise KeyboardInterrupt", -2),
        ("raise RuntimeError", 1),
        ("sys.exit(7)", 7),
        ("try: raise KeyboardInterrupt\nexcept KeyboardInterrupt: sys.exit(1)", 1),
        ("sys.ps1 = '>>> '; sys.last_value = KeyboardInterrupt()", 0),
        ("sys.last_value = KeyboardInterrupt()", 0),
    ],
)
def test_code_that_runs_at_exit_does_not_change_the_status(code: str, status: int) -> None:
    ended = subprocess.run([sys.executable, "-c", WORKER + code], capture_output=True, check=False)
    assert ended.returncode == status, ended.stderr


@pytest.mark.slow
def test_runs_end_with_the_exit_code_that_is_due_whenever_they_are_interrupted() -> None:
    ended = interruptions.end_many(len(interruptions.KINDS), jobs=2, seed=int(time.time()))
    assert [each for each in ended if not each.is_due] == []
