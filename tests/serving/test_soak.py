"""Half an hour of mixed requests, clients that leave, and an engine that restarts: no wrong answer, no leak.

    make soak                                        # 30 minutes; the figures go to runs/soak.json
    LLM_DETOX_SOAK_SECONDS=120 make soak             # shorter

`LLM_DETOX_SOAK_MODEL` names a Hugging Face folder in place of the tiny model, `LLM_DETOX_SOAK_OUTPUT` another file.
"""

from __future__ import annotations

import collections
import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from llm_detox import processes
from llm_detox.client import GenerationError, TextGenerationClient
from llm_detox.errors import DetoxError
from llm_detox.export import convert
from llm_detox.serve.local_stack import caikit_python
from tests.serving.engine.running import Engine, running_engine
from tests.serving.running import metrics_of, running_caikit, total, wait_for
from tests.serving.soaking import Client, Outage, Watched

SECONDS = float(os.environ.get("LLM_DETOX_SOAK_SECONDS", "1800"))
OUTPUT = Path(os.environ.get("LLM_DETOX_SOAK_OUTPUT", "runs/soak.json"))
NAME = "soaked"
PROTOCOLS = ["http"] * 12 + ["grpc"] * 12 + ["fmaas"] * 8
ENDS = [signal.SIGTERM, signal.SIGKILL]  # an orderly restart, and a crash
TEXTS = ["you are", "the quick brown fox jumps", "a fine day for a walk in the park with my friends", "☕ 日本語", "x",
         "thank you for the lovely dinner", "the train to the city leaves at noon and arrives " * 3, "shut up"]
LENGTHS = [1, 4, 40, 120]

pytestmark = [pytest.mark.soak, pytest.mark.timeout(4 * SECONDS + 1200)]


def _expected(folder: Path) -> dict[tuple[str, int], str]:
    """What transformers' own `generate` gives, one request at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = {}
    for text in TEXTS:
        inputs = tokenizer(text, return_tensors="pt")
        for length in LENGTHS:
            ids = model.generate(**inputs, max_new_tokens=length, min_new_tokens=length, do_sample=False)
            new = ids[0, inputs["input_ids"].shape[1]:]
            found[text, length] = tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd")
    return found


def _answers(url: str) -> bool:
    with TextGenerationClient(url, NAME, timeout=20, retries=0) as client, suppress(GenerationError):
        return client.generate("a", max_new_tokens=1).generated_tokens == 1
    return False


def _watch(watched: list[Watched], seconds: float, alive: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert alive(), "the engine has ended by itself"
        for one in watched:
            one.note()
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))


def _end(engine: Engine, how: signal.Signals) -> None:
    engine.process.send_signal(how)
    engine.process.wait(90)


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def test_soak(tiny_llama: Path, tmp_path: Path) -> None:
    try:
        caikit_python()
    except DetoxError as error:
        pytest.skip(str(error))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends half an hour early leaves no server behind
    convert(model=os.environ.get("LLM_DETOX_SOAK_MODEL", str(tiny_llama)), output=tmp_path / "model")
    artifacts, port = tmp_path / "model" / "artifacts", processes.free_ports(1)[0]
    expected, stop = _expected(artifacts), threading.Event()
    outages: list[Outage] = []
    clients: list[Client] = []
    engines: list[dict[str, Any]] = []
    arguments = ("--max-batch-size", "16", "--grpc-port", str(port), "--shutdown-grace-seconds", "1")
    with ExitStack() as stack:
        ports, runtime = stack.enter_context(running_caikit(
            tmp_path / "model", tmp_path / "caikit.log", model_id=NAME, engine=f"127.0.0.1:{port}"))
        urls = {"http": f"http://127.0.0.1:{ports['rest']}", "grpc": f"grpc://127.0.0.1:{ports['grpc']}",
                "fmaas": f"fmaas://127.0.0.1:{port}"}
        caikit = Watched(runtime)
        for how in [*ENDS, None]:
            with running_engine(artifacts, *arguments) as engine:
                for url in urls.values():
                    wait_for(lambda url=url: _answers(url), 120, 0.2)
                if outages:
                    outages[-1].over = time.monotonic()
                else:
                    started = time.monotonic()
                    clients = [Client(number, urls[protocol], NAME, expected, stop, outages)
                               for number, protocol in enumerate(PROTOCOLS)]
                    for client in clients:
                        client.start()
                watched = Watched(engine.process.pid)
                _watch([watched, caikit], SECONDS / (len(ENDS) + 1), lambda e=engine: e.process.poll() is None)
                engines.append(watched.figures())
                if how is not None:
                    outages.append(Outage(time.monotonic()))
                    _end(engine, how)
                    continue
                stop.set()
                for client in clients:
                    client.join(150)
                seconds = time.monotonic() - started
                wait_for(lambda e=engine: _idle(e))
    figures = _figures(clients, seconds, outages, engines, caikit.figures())
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2, ensure_ascii=False), "utf-8")
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    _judge(figures)


def _idle(engine: Engine) -> bool:
    exposed = metrics_of(f"http://127.0.0.1:{engine.port}")
    return total(exposed, "tgi_batch_current_size") == total(exposed, "tgi_queue_size") == 0


def _figures(clients: list[Client], seconds: float, outages: list[Outage], engines: list[dict[str, Any]],
             caikit: dict[str, Any]) -> dict[str, Any]:
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for client in clients:
        counts[client.protocol] += client.log.counts
    times = [second for client in clients for second in client.log.seconds]
    return {
        "seconds": round(seconds), "clients": len(clients), "cores": os.cpu_count(),
        "counts": {name: dict(sorted(one.items())) for name, one in counts.items()},
        "answers_per_second": round(len(times) / seconds, 1),
        "answer_seconds": {"p50": statistics.median(times), "p95": _percentile(times, 0.95),
                           "p99": _percentile(times, 0.99)},
        "outage_seconds": [round((one.over or one.began) - one.began, 1) for one in outages],
        "wrong": [trouble for client in clients for trouble in client.log.wrong],
        "engines": engines, "caikit": caikit}


def _judge(figures: dict[str, Any]) -> None:
    assert figures["wrong"] == []
    for protocol in sorted(set(PROTOCOLS)):
        counts = figures["counts"][protocol]
        assert counts["answered"] > 100, protocol
        assert counts["left"] > 20, protocol
    for process in (*figures["engines"], figures["caikit"]):
        memory = process["rss_kib"]
        # A fiftieth in half an hour; the allocators' own ups and downs are a few mebibytes.
        assert memory["late"] <= 1.02 * memory["early"] + 8 * 1024, process
        assert process["threads"]["late"] <= process["threads"]["early"] + 20, process
        assert process["open_files"]["late"] <= process["open_files"]["early"] + 20, process
