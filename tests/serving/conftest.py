"""The whole topology once for all tests of this folder: store, published model, engine, Caikit runtime."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llm_detox import processes
from llm_detox.client import TextGenerationClient
from llm_detox.errors import DetoxError
from llm_detox.export import convert
from llm_detox.serve.deployment import read_state
from llm_detox.serve.local import deploy_local, stop_local
from llm_detox.serve.local_stack import caikit_python
from llm_detox.storage import publish
from llm_detox.storage.seaweed import find_weed, seaweed

NAME = "tiny-llama"


@dataclass(frozen=True)
class Stack:
    """A deployment made from the store, and the clients of its protocols."""

    folder: Path
    urls: dict[str, str]

    @property
    def artifacts(self) -> Path:
        return self.folder / "model" / "artifacts"

    def client(self, protocol: str, model_id: str = NAME, timeout: float = 60) -> TextGenerationClient:
        return TextGenerationClient(self.urls[protocol], model_id, timeout=timeout, retries=0)


@pytest.fixture(scope="session")
def engine_model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with an end-of-sequence logit that is small, but not zero, so that penalties act on it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = tmp_path_factory.mktemp("engine") / "llama"
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    rows = model.get_input_embeddings().weight
    with torch.no_grad():
        rows[1] = 0.05 * rows[2]
    model.save_pretrained(target)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture(scope="session")
def stack(engine_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Tests that only ask share it; whoever breaks processes starts an own one."""
    with deployed(str(engine_model), tmp_path_factory.mktemp("stack")) as running:
        yield running


@contextmanager
def deployed(model: str, root: Path) -> Iterator[Stack]:
    """Convert the model, publish it, fetch it back and serve it; at the end every process must have gone."""
    try:
        caikit_python()
        find_weed()
    except DetoxError as error:
        pytest.skip(str(error))
    convert(model=model, output=root / "converted")
    before = dict(os.environ)
    try:
        with seaweed(root / "store", buckets=["models"]) as store:
            os.environ.update(store.env())
            address = publish(root / "converted", "s3://models/published").address
            result = deploy_local(address, name=NAME, output=root / "deployment")
    finally:
        os.environ.clear()
        os.environ.update(before)
    yield Stack(root / "deployment", dict(result.urls))
    running = read_state(root / "deployment").processes
    assert all(processes.is_running(one) for one in running), processes.last_lines(running[0].log)
    assert stop_local(root / "deployment") == ["caikit", "engine"]
    assert not any(processes.is_running(one) for one in running)
    assert stop_local(root / "deployment") == []


def assert_greedy(client: TextGenerationClient, expected: Mapping[str, tuple[list[str], str]], new_tokens: int) -> None:
    """The served model gives the tokens and texts of `greedy`."""
    for prompt, (tokens, text) in expected.items():
        answer = client.generate(prompt, max_new_tokens=new_tokens, generated_tokens=True)
        assert [token.text for token in answer.tokens] == tokens
        assert answer.text == text


def greedy(folder: Path, prompts: Sequence[str], *, new_tokens: int) -> dict[str, tuple[list[str], str]]:
    """transformers' own greedy tokens of each prompt and their text, on a Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = {}
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1]:]
        # A character whose last bytes are still to come is not shown.
        text = tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd")
        found[prompt] = (tokenizer.convert_ids_to_tokens(new.tolist()), text)
    assert len({text for _, text in found.values()}) == len(prompts)
    return found
