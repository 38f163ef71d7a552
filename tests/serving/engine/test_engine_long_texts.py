"""Long texts: they cost what the model can take, and truncation gives the very tokens of the whole text."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llm_detox.generation.tokens import Vocabulary
from serving.engine import tokenization
from serving.engine.locality import locality
from serving.engine.tokenization import Tokenization
from serving.engine.validation import InvalidRequest, Limits
from tests.serving.engine.running import PROMPT, Engine, pb, refused, running_engine

REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + REST
PIECES = ["the", "you", "'re", "don't", "fox", "naïve", "日本語", "e\u0301", "Å", "\u1fbe\u0308\u0301",
          "\u1112\u1161\u11ab", "🙂", "12", "3456", "7", ".", ",", "...", "!\n", "</s>", "<s>", "_", "a_b", "x1y",
          "\u200b", "\ufeff"]
SPACES = [" ", " ", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u2003", "", ""]
LIMITS = Limits(256, 200)


def _text(chance: random.Random, pieces: int) -> str:
    return "".join(chance.choice(PIECES) + chance.choice(SPACES) for _ in range(pieces))


def _byte_level(*before: Any, use_regex: bool = True, prefix: bool = False, normalizer: Any = None) -> Tokenizer:
    made = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)
    made.pre_tokenizer = pre_tokenizers.Sequence([*before, last]) if before else last
    if normalizer is not None:
        made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    return _trained(made, pre_tokenizers.ByteLevel.alphabet())


def _by_character(prepend: bool) -> Tokenizer:
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    replace = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace] if prepend else [replace])
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # while it learns, as sentencepiece does
    trained = _trained(made, [], [f"<0x{byte:02X}>" for byte in range(256)])
    trained.pre_tokenizer = None
    return trained


def _trained(made: Tokenizer, alphabet: list[str], more: list[str] | None = None) -> Tokenizer:
    chance = random.Random(3)
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False,
                                  special_tokens=["<unk>", "<s>", "</s>", *(more or [])])
    made.train_from_iterator([_text(chance, 60) for _ in range(200)], trainer)
    if more:  # as in a model's file: bytes are tokens of the model, not added ones
        made = _without_added(made, set(more))
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    return made


def _without_added(made: Tokenizer, names: set[str]) -> Tokenizer:
    import json

    state = json.loads(made.to_str())
    state["added_tokens"] = [one for one in state["added_tokens"] if one["content"] not in names]
    return Tokenizer.from_str(json.dumps(state))


def _split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


KNOWN = {
    "gpt2": lambda: _byte_level(), "opt": lambda: _byte_level(prefix=True),
    "smollm2": lambda: _byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "llama3": lambda: _byte_level(_split(LLAMA3), use_regex=False),
    "qwen2": lambda: _byte_level(_split(QWEN2), use_regex=False, normalizer=normalizers.NFC()),
    "llama2": lambda: _by_character(prepend=True), "gemma": lambda: _by_character(prepend=False),
}


@pytest.fixture(scope="module", params=KNOWN)
def known(request: pytest.FixtureRequest) -> Tokenizer:
    return KNOWN[request.param]()


def _whole(backend: Tokenizer, text: str, truncate: int) -> list[int]:
    encoded = backend.encode(text)
    kept = 1 if encoded.special_tokens_mask[0] and truncate > 1 else 0
    ids = encoded.ids
    return ids if len(ids) <= truncate else ids[:kept] + ids[len(ids) - truncate + kept:]


def test_the_end_of_a_long_text_has_the_tokens_of_the_whole(known: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "_FIRST_WINDOW", 16)
    ours = Tokenization.of(Vocabulary(known), bos=1)
    assert ours.local is not None
    tokenized: list[int] = []
    plain = Tokenization._encoded

    def noted(self: Tokenization, text: str) -> Any:
        tokenized.append(len(text))
        return plain(self, text)

    monkeypatch.setattr(Tokenization, "_encoded", noted)
    chance, shorter = random.Random(5), 0
    for _ in range(400):
        text = _text(chance, chance.randint(1, 120))
        for truncate in (1, 2, 3, 7, 20):
            tokenized.clear()
            assert ours.encode(text, truncate) == _whole(known, text, truncate), (text, truncate)
            shorter += max(tokenized) < len(text)
    assert shorter > 500, "the ends were never enough: this test shows nothing"


def test_no_text_has_fewer_tokens_than_its_length_tells(known: Tokenizer) -> None:
    local, chance = locality(known), random.Random(6)
    assert local is not None
    longest = max((token for token in known.get_vocab()), key=len)
    texts = [_text(chance, chance.randint(1, 60)) for _ in range(300)] + ["", " " * 500, "\u1fbe\u0308\u0301" * 99,
                                                                      known.decode([known.token_to_id(longest)]) * 50]
    for text in texts:
        assert local.least_tokens(text) <= len(known.encode(text, add_special_tokens=False).ids), text


def _strips() -> Tokenizer:
    return _byte_level(normalizer=normalizers.Strip())


def _looks_back() -> Tokenizer:
    return _byte_level(_split(r"(?<=a) b|\s+|\S+"), use_regex=False)


def _swallows() -> Tokenizer:
    from tokenizers import AddedToken

    made = _byte_level()
    made.add_tokens([AddedToken("<mask>", lstrip=True)])
    return made


def _word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


@pytest.mark.parametrize("make", [_strips, _looks_back, _swallows, _word_piece])
def test_nothing_is_taken_for_known_of_other_tokenizers(make: Any) -> None:
    made = make()
    assert locality(made) is None
    Tokenization.of(Vocabulary(made), bos=1).check("a" * 10**6, 0, LIMITS)


def test_a_long_text_without_a_place_to_cut_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "MAX_TOKENIZED_CHARACTERS", 10_000)
    ours = Tokenization.of(Vocabulary(_byte_level()), bos=1)
    assert len(ours.encode("a" * 9_000, 5)) == 5
    with pytest.raises(InvalidRequest, match="no space follows a letter or digit"):
        ours.encode("a" * 20_000, 5)
    assert ours.encode("a" * 20_000 + " fox" * 3000, 5)[1:] == ours.encode(" fox" * 4)[-4:]


LARGE = 15 * 2**20
REFUSED = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def own_engine(engine_model: Path) -> Any:
    with running_engine(engine_model) as found:
        found.generate(PROMPT)
        yield found


def _peak_mib(engine: Engine) -> float:
    status = Path(f"/proc/{engine.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


@pytest.mark.parametrize(("text", "truncate"), [
    ("word ☕ ", 0), ("word ☕ ", 10), ("a", 0), ("a", 10), ("\n", 10), ("日本語", 10)])
def test_a_large_request_keeps_nobody_waiting(own_engine: Engine, text: str, truncate: int) -> None:
    before, large = _peak_mib(own_engine), text * (LARGE // len(text.encode()))
    outcome: list[Any] = []

    def ask() -> None:
        try:
            outcome.append(own_engine.generate(large, truncate_input_tokens=truncate, stopping={"max_new_tokens": 1}))
        except grpc.RpcError as error:
            outcome.append(error.code())

    asking = threading.Thread(target=ask)
    started = time.monotonic()
    asking.start()
    waits = []
    while asking.is_alive() or not waits:
        begun = time.monotonic()
        assert own_engine.get("/health")[0] == 200
        assert len(own_engine.generate(PROMPT, stopping={"max_new_tokens": 1})) == 1
        waits.append(time.monotonic() - begun)
    asking.join()
    assert max(waits) < 2.0
    assert time.monotonic() - started < 8.0
    assert _peak_mib(own_engine) - before < 400
    if truncate and " " in text:
        assert outcome[0][0].input_token_count == truncate
    else:
        assert outcome == [REFUSED]


def test_texts_to_tokenize_are_bounded(own_engine: Engine) -> None:
    request = pb.BatchedTokenizeRequest(requests=[{"text": "word " * 150_000}] * 2)
    assert "at most 1048576 characters" in refused(
        lambda: own_engine.call("Tokenize", request, pb.BatchedTokenizeResponse))
