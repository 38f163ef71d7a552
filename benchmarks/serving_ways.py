"""What `serve_speed` compares: the same requests to `generate`, and to servers in processes of their own."""

from __future__ import annotations

import os
import random
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_detox import processes
from llm_detox.client import TextGenerationClient
from llm_detox.serve.local_stack import Ports, start, wait_until_ready

NAME = "bench"
_TEXT = ("the best thing about my neighbours is that they always bring fresh bread from market when it rains and "
         "children sing old songs while we talk about work weather music travel books and many other things")
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Request:
    text: str
    tokens: int


def requests(count: int, tokens: int, spread: float, seed: int = 1) -> list[Request]:
    """So many requests of 4 to 40 words; outputs differ from `tokens` by up to `spread` of it."""
    chance, words = random.Random(seed), _TEXT.split()  # noqa: S311
    return [Request(" ".join(chance.choices(words, k=chance.randint(4, 40))),
                    max(1, round(tokens * (1 + chance.uniform(-spread, spread))))) for _ in range(count)]


class Plain:
    """`generate` of transformers."""

    def __init__(self, model: Path) -> None:
        from llm_detox.generation.models import load_model, load_tokenizer

        self.model: Any = load_model(model)
        self.tokenizer = load_tokenizer(model)

    def run(self, batch: Sequence[Request]) -> int:
        import torch

        encoded = self.tokenizer([request.text for request in batch], return_tensors="pt", padding=True)
        most = max(request.tokens for request in batch)
        with torch.inference_mode():
            self.model.generate(**encoded.to(self.model.device), max_new_tokens=most, min_new_tokens=most,
                                do_sample=False)
        return sum(request.tokens for request in batch)  # what was asked for; the rest of the batch's steps is waste

    def one_by_one(self, work: Sequence[Request]) -> int:
        return sum(self.run([request]) for request in work)

    def batches(self, work: Sequence[Request], size: int) -> int:
        return sum(self.run(work[i:i + size]) for i in range(0, len(work), size))


class Served:
    """A served model, asked through this project's client."""

    def __init__(self, url: str) -> None:
        self.client = TextGenerationClient(url, NAME, timeout=600, retries=0)

    def one(self, request: Request) -> int:
        answer = self.client.generate(request.text, max_new_tokens=request.tokens, min_new_tokens=request.tokens,
                                      decoding_method="GREEDY")
        if answer.generated_tokens != request.tokens:
            raise SystemExit(f"{self.client}: {answer.generated_tokens} tokens in place of {request.tokens}")
        return answer.generated_tokens

    def concurrent(self, work: Sequence[Request], size: int) -> int:
        with ThreadPoolExecutor(size) as pool:
            return sum(pool.map(self.one, work))


@contextmanager
def topology(model: Path, work: Path) -> Iterator[dict[str, Served]]:
    """Engine and Caikit runtime for a Caikit folder: `engine` is asked past Caikit, the others through it."""
    ports = Ports.choose()
    running = start(model, NAME, ports, work)
    try:
        wait_until_ready(running, ports, NAME)
        urls = ports.urls()
        yield {"engine": Served(urls["fmaas"]), "caikit_grpc": Served(urls["grpc"]),
               "caikit_rest": Served(urls["rest"])}
    finally:
        processes.stop_all(running)


@contextmanager
def vllm(python: str, model: Path, size: int, gpu: bool, logs: Path) -> Iterator[dict[str, Served]]:
    """Our engine with vLLM behind it, and vLLM's own OpenAI server, in the same environment with the same settings."""
    grpc_port, health, openai = processes.free_ports(3)
    folder = str(model / "artifacts")
    both = [] if gpu else ["--dtype", "float32"]
    engine = [python, "-m", "serving.engine", "--model-name", folder, "--backend", "vllm", "--host", "127.0.0.1",
              "--grpc-port", str(grpc_port), "--port", str(health), "--max-batch-size", str(size), *both]
    own = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--served-model-name", NAME,
           "--host", "127.0.0.1", "--port", str(openai), "--max-num-seqs", str(size), *both,
           *([] if gpu else ["--enforce-eager"])]
    with ExitStack() as stack:
        # One after the other: both measure how much memory is free.
        stack.enter_context(_process(engine, f"http://127.0.0.1:{health}/health", logs / "engine.log"))
        stack.enter_context(_process(own, f"http://127.0.0.1:{openai}/health", logs / "openai.log"))
        yield {"vllm_engine": Served(f"fmaas://127.0.0.1:{grpc_port}"),
               "vllm_openai": Served(f"openai+http://127.0.0.1:{openai}")}


@contextmanager
def _process(command: list[str], health: str, log: Path) -> Iterator[None]:
    env = {**os.environ, "PYTHONPATH": str(_ROOT), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    env.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=env)
    try:
        while not is_healthy(health):
            if process.poll() is not None:
                raise SystemExit(f"a server ended before it was ready:\n{processes.last_lines(log)}")
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_healthy(url: str) -> bool:
    """Whether a GET gives 200."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def caikit_folder(model: str, work: Path) -> Path:
    """The model as a Caikit folder; another model source is converted."""
    if (Path(model) / "config.yml").is_file():
        return Path(model)
    from llm_detox.export import convert

    convert(model=model, output=work / "model")
    return work / "model"

