"""The Caikit environment has an old transformers: it opens no model, so what a folder holds cannot reach it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llm_detox.client import GenerationError, TextGenerationClient
from llm_detox.export import convert
from tests.serving.conftest import NAME
from tests.serving.engine.running import running_engine
from tests.serving.running import running_caikit, wait_for


@pytest.mark.heavy
def test_caikit_serves_a_model_whose_files_it_does_not_have(engine_model: Path, tmp_path: Path) -> None:
    convert(model=str(engine_model), output=tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "artifacts")
    (tmp_path / "model" / "artifacts").mkdir()
    with running_engine(engine_model) as engine, running_caikit(
            tmp_path / "model", tmp_path / "caikit.log", model_id=NAME,
            engine=f"127.0.0.1:{engine.grpc_port}") as (ports, _):

        def asked() -> bool:
            with TextGenerationClient(f"http://127.0.0.1:{ports['rest']}", NAME, timeout=20, retries=0) as client:
                try:
                    return client.generate("the quick", max_new_tokens=2).generated_tokens == 2
                except GenerationError:
                    return False

        assert wait_for(asked, 120, 0.5)
