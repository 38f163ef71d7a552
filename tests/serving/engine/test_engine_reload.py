"""A model is exchanged under way: new calls meet the new one, those that run end with the old one."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny import save_tiny_llama
from tests.serving.engine.running import PROMPT, Engine, running_engine
from tests.serving.running import wait_for


def _point(link: Path, folder: Path) -> None:
    new = link.with_suffix(".new")
    new.symlink_to(folder, target_is_directory=True)
    new.replace(link)


def _exchange(engine: Engine, link: Path, folder: Path) -> None:
    _point(link, folder)
    engine.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: engine.metric(f'llm_detox_model{{folder="{folder}"}}') == 1.0, 60)


@pytest.fixture(scope="module")
def models(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models").resolve()
    shutil.copytree(tiny_llama, root / "first")
    save_tiny_llama(root / "second", seed=5)
    shutil.copytree(tiny_llama, root / "broken")
    (root / "broken" / "model.safetensors").write_bytes(b"\0" * 100)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def exchanged(models: dict[str, Path], tmp_path: Path) -> Iterator[tuple[Engine, Path]]:
    link = tmp_path / "model"
    _point(link, models["first"])
    with running_engine(link) as engine:
        yield engine, link


def _text(engine: Engine, **params: Any) -> str:
    return str(engine.generate(PROMPT, **params)[0].text)


def test_an_exchange_loses_no_call_and_mixes_no_answers(
    exchanged: tuple[Engine, Path], models: dict[str, Path]
) -> None:
    engine, link = exchanged
    long: Any = {"stopping": {"max_new_tokens": 240, "min_new_tokens": 240}}
    first, whole = _text(engine), _text(engine, **long)
    running = [engine.start_stream(PROMPT, method=1, sampling={"top_k": 1, "typical_p": 0.99}, **long)
               for _ in range(12)]
    begun = [next(stream) for stream in running]
    _exchange(engine, link, models["second"])
    second = _text(engine)
    assert second != first
    assert {"".join(piece.text for piece in stream) for stream in running} == {whole}
    assert all(one.input_token_count for one in begun)
    assert _text(engine) == second
    _exchange(engine, link, models["first"])
    assert _text(engine) == first
    assert engine.terminate() == 0
    assert "Traceback" not in engine.log.read_text()


def test_a_model_that_does_not_load_changes_nothing(exchanged: tuple[Engine, Path], models: dict[str, Path]) -> None:
    engine, link = exchanged
    first = _text(engine)
    _point(link, models["broken"])
    engine.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: engine.metric("llm_detox_reload_failures_total") == 1.0, 60)
    assert "the old one goes on" in engine.log.read_text()
    assert _text(engine) == first
    assert engine.get("/health")[0] == 200
    _exchange(engine, link, models["second"])
    assert _text(engine) != first


@pytest.mark.slow
def test_exchanged_models_leave_no_memory_behind(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        save_tiny_llama(folder)
        config = LlamaConfig.from_pretrained(folder)
        config.hidden_size, config.intermediate_size, config.vocab_size = 512, 1024, 40_000  # 90 MiB
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    link = tmp_path / "model"
    _point(link, folders[0])
    seen = []
    with running_engine(link) as engine:
        for number in range(10):
            _exchange(engine, link, folders[(number + 1) % 2].resolve())
            _text(engine)
            wait_for(lambda count=number + 1: engine.log.read_text().count("end with the model before") == count)
            status = Path(f"/proc/{engine.process.pid}/status").read_text()
            seen.append(int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024)
    assert max(seen[-3:]) < min(seen[1:4]) + 60, seen
