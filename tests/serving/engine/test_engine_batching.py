"""Continuous batching: whoever else is in the batch, a request gets what it would get alone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from serving.engine.backend_transformers import BatchedRows, Model, SoloRows, batching_trouble
from serving.engine.jobs import ERROR, MAX_TOKENS, NOT_FINISHED, TIME_LIMIT, Job, Update
from serving.engine.metrics import Metrics
from serving.engine.resources import cache_bytes
from serving.engine.scheduler import Scheduler
from serving.engine.settings import Settings
from serving.engine.source import Source
from serving.engine.validation import Parameters

SIZE = 120
COMMON = {"vocab_size": SIZE, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
          "bos_token_id": 0, "eos_token_id": 1}
FAMILIES: dict[str, Any] = {
    "llama": t.LlamaConfig(**COMMON),
    "mistral with a sliding window": t.MistralConfig(**COMMON, sliding_window=6),
    "qwen2": t.Qwen2Config(**COMMON),
    "qwen3": t.Qwen3Config(**COMMON, head_dim=8),
    "gemma3 with mixed windows": t.Gemma3TextConfig(
        **COMMON, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]),
    "granite": t.GraniteConfig(**COMMON),
    "gpt2": t.GPT2Config(vocab_size=SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=0,
                         eos_token_id=1),
    "opt": t.OPTConfig(vocab_size=SIZE, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                       max_position_embeddings=256, word_embed_proj_dim=32, pad_token_id=0),
    "gpt-neox": t.GPTNeoXConfig(vocab_size=SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                num_attention_heads=4, max_position_embeddings=256),
    "bloom with alibi": t.BloomConfig(vocab_size=SIZE, hidden_size=32, n_layer=2, n_head=4),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models are slower on several threads, far slower where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _model(config: Any) -> Any:
    torch.manual_seed(0)
    config.initializer_range = 0.3
    return t.AutoModelForCausalLM.from_config(config).eval()


@torch.inference_mode()
def _alone(model: Any, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_come_and_go_see_the_logits_that_each_sees_alone(family: str) -> None:
    model, chance = _model(FAMILIES[family]), random.Random(1)
    assert batching_trouble(model, SIZE) is None
    rows, sequences = BatchedRows(model, 6), list[list[int]]()
    for _ in range(45):
        if len(sequences) < 6 and chance.random() < 0.4:
            new = [[chance.randrange(SIZE) for _ in range(chance.randint(1, 30))]
                   for _ in range(min(chance.randint(1, 3), 6 - len(sequences)))]
            for ids, logits in zip(new, rows.add(new), strict=True):
                assert torch.allclose(logits, _alone(model, ids), atol=1e-3)
            sequences.extend(new)
        elif sequences and chance.random() < 0.25:
            gone = chance.randrange(len(sequences))
            rows.drop(gone)
            last = sequences.pop()
            if gone < len(sequences):
                sequences[gone] = last
        if not sequences:
            continue
        tokens = [chance.randrange(SIZE) for _ in sequences]
        for ids, token, logits in zip(sequences, tokens, rows.step(tokens), strict=True):
            ids.append(token)
            assert torch.allclose(logits, _alone(model, ids), atol=1e-3)


def test_a_long_prompt_that_is_read_in_parts_gives_the_same_logits() -> None:
    model = _model(t.LlamaConfig(**{**COMMON, "max_position_embeddings": 1024}))
    ids = [random.Random(5).randrange(SIZE) for _ in range(700)]
    rows, seen = BatchedRows(model, 2), list[torch.Tensor]()
    rows.add([[1, 2, 3]])
    last = rows.add([ids], watch=seen.append)
    with torch.inference_mode():
        whole = model(input_ids=torch.tensor([ids])).logits[0]
    assert [len(part) for part in seen] == [256, 256, 188]
    assert torch.allclose(torch.cat(seen), whole, atol=1e-3)
    assert torch.allclose(last[0], whole[-1], atol=1e-3)
    assert torch.allclose(rows.step([4, 5])[1], _alone(model, [*ids, 5]), atol=1e-3)


def test_a_state_space_model_is_not_batched_and_still_generates() -> None:
    config = t.MambaConfig(vocab_size=SIZE, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = _model(config)
    assert "does not run with a batch cache" in str(batching_trouble(model, SIZE))
    rows = SoloRows(model)
    ids = [5, 6, 7]
    logits = rows.add([ids])
    for _ in range(5):
        token = int(logits[0].argmax())
        ids.append(token)
        logits = rows.step([token])
        assert torch.allclose(logits[0], _alone(model, ids), atol=1e-3)


def test_a_model_whose_padding_leaks_is_not_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(FAMILIES["llama"])
    forward = model.forward

    def leaky(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("attention_mask", None)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", leaky)
    assert "other results in a padded batch" in str(batching_trouble(model, SIZE))


def test_rope_scaling_that_looks_at_the_whole_batch_is_not_batched(tiny_llama: Path, tmp_path: Path) -> None:
    config = t.LlamaConfig(**{**COMMON, "vocab_size": 400}, rope_parameters={
        "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 128})
    _model(config).save_pretrained(tmp_path)
    t.AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    source = Source(str(tmp_path))
    assert isinstance(Model(source, Settings("m", "127.0.0.1")).rows, SoloRows)
    short = Model(source, Settings("m", "127.0.0.1", max_sequence_length=128))
    assert isinstance(short.rows, BatchedRows)


class Served(Model):
    """A model with the source that it comes from."""

    def __init__(self, source: Source, settings: Settings) -> None:
        super().__init__(source, settings)
        self.vocabulary, self.eos, self.tokenizer = source.vocabulary, source.eos, source.tokenizer


class Harness:
    """A scheduler over the tiny model, with results by request."""

    def __init__(self, model: Served, **options: Any) -> None:
        self.model = model
        options = {"budget": 100_000, **options}
        self.scheduler = Scheduler(model.rows, model.vocabulary, model.eos, Metrics(), **options)
        self.scheduler.start()

    def submit(self, text: str, *, stream: bool = False,
               **parameters: Any) -> tuple[Job, list[Update], threading.Event]:
        updates, done = list[Update](), threading.Event()

        def deliver(update: Update) -> None:
            updates.append(update)
            if update.reason != NOT_FINISHED:
                done.set()

        ids = self.model.vocabulary.backend.encode(text).ids
        job = Job(ids, Parameters(**parameters), stream, deliver)
        self.scheduler.submit([job])
        return job, updates, done

    def run(self, text: str, **parameters: Any) -> Update:
        _, updates, done = self.submit(text, **parameters)
        assert done.wait(60)
        return updates[-1]


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Served:
    return Served(Source(str(tiny_llama)), Settings("m", "127.0.0.1", max_batch_size=8))


@pytest.fixture
def harness(model: Served) -> Iterator[Harness]:
    found = Harness(model)
    yield found
    found.scheduler.stop()


TEXTS = ["the quick brown fox", "you are", "a fine day for a walk in the park with my friends and the dog", "☕ 日本語",
         "thank you", "the train to the city leaves at noon and arrives in the evening " * 3, "x", "shut up"]


def _generated(model: Served, text: str, count: int) -> str:
    encoded = model.tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        ids = model.model.generate(**encoded, max_new_tokens=count, do_sample=False)  # type: ignore[operator]
    return str(model.vocabulary.backend.decode(ids[0, encoded["input_ids"].shape[1]:].tolist())).rstrip("�")


def test_greedy_text_under_load_equals_generate_alone(harness: Harness, model: Served) -> None:
    lengths = {text: 10 + 7 * index for index, text in enumerate(TEXTS)}
    expected = {text: _generated(model, text, count) for text, count in lengths.items()}
    chance = random.Random(3)
    waiting = []
    for _ in range(6):  # 48 requests on 8 rows, in waves, so that rows join and leave all the time
        for text in chance.sample(TEXTS, len(TEXTS)):
            waiting.append((text, harness.submit(text, max_new_tokens=lengths[text])))
        time.sleep(0.02)
    for text, (_, updates, done) in waiting:
        assert done.wait(60)
        assert updates[-1].text == expected[text]


def test_sampled_text_depends_on_the_seed_and_not_on_the_company(harness: Harness) -> None:
    wanted = {"temperature": 1.0, "top_p": 0.9, "seed": 17, "max_new_tokens": 40}
    alone = harness.run("you are", **wanted).text
    company = [harness.submit(text, temperature=1.0, seed=index, max_new_tokens=30 + index)
               for index, text in enumerate(TEXTS)]
    assert harness.run("you are", **wanted).text == alone
    assert harness.run("you are", **{**wanted, "seed": 18}).text != alone
    assert all(done.wait(60) for _, _, done in company)


def test_the_pieces_of_a_stream_add_up_to_the_unary_text(harness: Harness) -> None:
    whole = harness.run("the lazy", max_new_tokens=50).text
    _, updates, done = harness.submit("the lazy", stream=True, max_new_tokens=50)
    assert done.wait(60)
    assert "".join(update.text for update in updates) == whole
    assert len(updates) > 10
    assert [update.count for update in updates] == sorted(update.count for update in updates)


def test_a_cancelled_request_frees_its_row(harness: Harness) -> None:
    long = [harness.submit("the", max_new_tokens=240, min_new_tokens=240)[0] for _ in range(8)]
    _, updates, done = harness.submit("you", max_new_tokens=3)
    for job in long:
        harness.scheduler.cancel(job)
    started = time.monotonic()
    assert done.wait(30)
    assert time.monotonic() - started < 5
    assert updates[-1].count == 3


def test_the_time_limit_ends_a_request_that_waits_and_one_that_runs(harness: Harness) -> None:
    blockers = [harness.submit("the", max_new_tokens=200, min_new_tokens=200) for _ in range(8)]
    _, updates, done = harness.submit("you", max_new_tokens=5, deadline=time.monotonic() + 0.05)
    running = harness.submit("the", max_new_tokens=200, min_new_tokens=200)
    assert done.wait(30)
    assert (updates[-1].reason, updates[-1].count) == (TIME_LIMIT, 0)
    assert all(wait.wait(60) for _, _, wait in [*blockers, running])
    late = harness.run("you", max_new_tokens=200, min_new_tokens=200, deadline=time.monotonic())
    assert (late.reason, late.count) == (TIME_LIMIT, 1)


def test_requests_beyond_the_cache_budget_wait_and_then_run(model: Served) -> None:
    harness = Harness(model, budget=60)
    try:
        results = [harness.submit("the quick", max_new_tokens=25) for _ in range(6)]
        most = 0
        while not all(done.is_set() for _, _, done in results):
            most = max(most, len(harness.scheduler._running))
            time.sleep(0.001)
        assert 1 <= most <= 2
        assert {updates[-1].reason for _, updates, _ in results} == {MAX_TOKENS}
    finally:
        harness.scheduler.stop()


def test_a_step_that_fails_ends_its_requests_and_not_the_engine(harness: Harness,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(harness.model.rows, "step", lambda tokens: 1 / 0)
        failed = harness.run("the", max_new_tokens=5)
    assert failed.reason == ERROR
    assert "division" in failed.error
    assert not harness.scheduler.healthy
    assert harness.run("the", max_new_tokens=5).reason == MAX_TOKENS
    assert harness.scheduler.healthy


def test_a_failure_while_requests_join_leaves_none_without_an_answer(harness: Harness,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(harness.scheduler, "_take", lambda rows, logits: 1 / 0)
        asked = [harness.submit(text, max_new_tokens=5) for text in TEXTS]
        assert all(done.wait(30) for _, _, done in asked)
    assert {updates[-1].reason for _, updates, _ in asked} == {ERROR}
    assert harness.run("the", max_new_tokens=5).reason == MAX_TOKENS


def test_a_long_prompt_joins_a_batch_that_never_empties(model: Served) -> None:
    harness = Harness(model, prefill_tokens=20)
    try:
        blocker = harness.submit("the", max_new_tokens=240, min_new_tokens=240)
        _, _, done = harness.submit("the train to the city " * 8, max_new_tokens=2)
        assert done.wait(30)
        assert blocker[2].wait(60)
    finally:
        harness.scheduler.stop()


def test_the_cache_of_a_token_is_measured() -> None:
    assert cache_bytes(_model(FAMILIES["llama"])) == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, size, bytes
    assert cache_bytes(_model(t.MambaConfig(vocab_size=SIZE, hidden_size=32, num_hidden_layers=2, state_size=4))) == 0


def test_a_prompt_that_fails_does_not_end_the_others(harness: Harness, model: Served) -> None:
    _, updates, done = harness.submit("the", max_new_tokens=200, min_new_tokens=200)
    bad = Job([10**6], Parameters(max_new_tokens=5), False, lambda update: results.append(update))
    results: list[Update] = []
    harness.scheduler.submit([bad])
    assert done.wait(60)
    assert updates[-1].reason == MAX_TOKENS
    assert [update.reason for update in results] == [ERROR]


def test_stopping_the_engine_fails_what_is_unfinished(model: Served) -> None:
    harness = Harness(model)
    _, updates, done = harness.submit("the", max_new_tokens=240, min_new_tokens=240)
    harness.scheduler.stop()
    assert done.wait(1)
    assert updates[-1].reason == ERROR
    with pytest.raises(RuntimeError, match="stopped"):
        harness.submit("the")
    model.rows.clear()
