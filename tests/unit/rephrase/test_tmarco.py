"""TMaRCo in batches against a slow transcription of its description, on random small BARTs, within its memory."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from llm_detox.errors import DetoxError
from llm_detox.rephrase.build import Rewriter
from llm_detox.rephrase.tmarco import TMaRCo, jensen_shannon_distance
from tests.helpers import tiny_rewriters as tiny

WORDS = tiny.bart_tokenizer()
MODELS = [tiny.bart(seed, WORDS) for seed in range(4)]
THRESHOLDS = (0.6, 1.0, 1.2)


class SlowTMaRCo:
    """One sentence, one mask, one expert at a time, with the whole logits."""

    def __init__(self, base: PreTrainedModel, experts: list[PreTrainedModel], weights: list[float]) -> None:
        self.base, self.experts, self.weights = base, experts, weights
        self.tokenizer = copy.deepcopy(WORDS)
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.known: dict[str, list[float]] = {}

    def logits(self, model: PreTrainedModel, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return ids[0], model(input_ids=ids).logits[0].float()

    def at_mask(self, model: PreTrainedModel, text: str) -> torch.Tensor:
        ids, logits = self.logits(model, text)
        return logits[int((ids == self.tokenizer.mask_token_id).nonzero().item())]

    def score(self, text: str) -> list[float]:
        if text not in self.known:
            self.known[text] = self.scored(text)
        return self.known[text]

    def scored(self, text: str) -> list[float]:
        tokens = self.tokenizer.tokenize(text)
        if not tokens:
            return []
        predictions: list[list[np.ndarray]] = []
        for expert in self.experts:
            rows = []
            for i in range(len(tokens)):
                changed = list(tokens)
                changed[i] = self.tokenizer.pad_token + self.tokenizer.mask_token
                logits = self.at_mask(expert, self.tokenizer.convert_tokens_to_string(changed))
                rows.append(logits.double().softmax(-1).numpy())
            predictions.append(rows)
        columns = []
        for one, other in combinations(predictions, 2):
            column = np.array([distance(p, q) for p, q in zip(one, other, strict=True)])
            columns.append(column / column.mean())
        return list(np.mean(columns, axis=0))

    def mask(self, text: str, threshold: float) -> str:
        tokens = [self.tokenizer.mask_token if score > threshold else token
                  for token, score in zip(self.tokenizer.tokenize(text), self.score(text), strict=True)]
        return self.tokenizer.convert_tokens_to_string(tokens) if tokens else ""

    def rephrase(self, text: str, threshold: float, combine_original: bool) -> str:
        if not text.strip() or max(self.score(text)) <= threshold:
            return text
        _, base = self.logits(self.base, text)
        original = self.tokenizer(text)["input_ids"][1:-1]
        chosen: list[int] = []
        tokens = self.tokenizer.tokenize(self.mask(text, threshold))
        for i, token in enumerate(tokens):
            if token != self.tokenizer.mask_token:
                chosen.append(self.tokenizer.convert_tokens_to_ids(token))
                continue
            ids = [*chosen, self.tokenizer.mask_token_id]
            if combine_original and i < len(tokens) - 2:
                ids += original[i + 1:]
            masked = self.tokenizer.convert_tokens_to_string(self.tokenizer.convert_ids_to_tokens(ids))
            product = base[min(1 + i, len(base) - 1)].clone()  # with masks a text may have more tokens than before
            for weight, expert in zip(self.weights, self.experts, strict=True):
                product += weight * self.at_mask(expert, masked)
            chosen.append(int(product.argmax()))
        return self.tokenizer.decode(chosen, clean_up_tokenization_spaces=True, skip_special_tokens=True)


def distance(p: np.ndarray, q: np.ndarray) -> float:
    m = (p + q) / 2
    return float(np.sqrt((np.sum(p * np.log(p / m)) + np.sum(q * np.log(q / m))) / 2))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    yield from tiny.one_thread()


def both(weights: list[float], dtype: torch.dtype = torch.float32) -> tuple[TMaRCo, SlowTMaRCo]:
    models = MODELS if dtype == torch.float32 else [copy.deepcopy(model).to(dtype) for model in MODELS]
    experts = models[1: 1 + len(weights)]
    return TMaRCo(models[0], experts, weights, tokenizer=WORDS, batch_tokens=100), \
        SlowTMaRCo(models[0], experts, weights)


def unclear(slow: SlowTMaRCo, text: str, threshold: float) -> bool:
    """A score so near the threshold that rounding decides."""
    return any(abs(score - threshold) < 1e-4 for score in slow.score(text))


sentence = st.lists(st.sampled_from([*tiny.NEUTRAL, *tiny.TOXIC, "Straße", "it's", "ok!"]), max_size=6).map(" ".join)


@settings(max_examples=12, deadline=None)
@given(texts=st.lists(sentence, max_size=3), weights=st.sampled_from([[-0.5, 0.5], [-0.5, 4.0], [-1.0, 0.5, 2.0]]))
def test_scores_equal_the_description(texts: list[str], weights: list[float]) -> None:
    fast, slow = both(weights)
    for text, scores in zip(texts, fast.score(texts), strict=True):
        assert scores == pytest.approx(slow.score(text), rel=1e-4)


@settings(max_examples=12, deadline=None)
@example(texts=["you you you you Straße you"], weights=[-0.5, 0.5], threshold=1.0, combine=False)
@given(texts=st.lists(sentence, max_size=3), weights=st.sampled_from([[-0.5, 0.5], [-0.5, 4.0], [-1.0, 0.5, 2.0]]),
       threshold=st.sampled_from(THRESHOLDS), combine=st.booleans())
def test_masks_and_rephrased_text_equal_the_description(
    texts: list[str], weights: list[float], threshold: float, combine: bool
) -> None:
    fast, slow = both(weights)
    texts = [text for text in texts if not unclear(slow, text, threshold)]
    assert fast.mask(texts, threshold) == [slow.mask(text, threshold) for text in texts]
    assert fast.rephrase(texts, threshold, combine) == [slow.rephrase(text, threshold, combine) for text in texts]


def test_the_batch_decides_nothing() -> None:
    texts = [text for text, _ in tiny.sentences(12, seed=9)]
    small, large = (TMaRCo(MODELS[0], MODELS[1:3], tokenizer=WORDS, batch_tokens=size) for size in (40, 4000))
    assert small.rephrase(texts, 1.0, True) == large.rephrase(texts, 1.0, True)
    assert [large.rephrase([text], 1.0, True)[0] for text in texts] == large.rephrase(texts, 1.0, True)


def test_experts_side_by_side_give_what_they_give_one_by_one() -> None:
    texts = [text for text, _ in tiny.sentences(12, seed=9)]
    fast, _ = both([-0.5, 0.5])
    scores, found = fast.score(texts), fast.rephrase(texts, 1.0, True)
    torch.set_num_threads(2)
    try:
        assert fast.rephrase(texts, 1.0, True) == found
        for one, other in zip(fast.score(texts), scores, strict=True):
            assert one == pytest.approx(other, rel=1e-4)
    finally:
        torch.set_num_threads(1)


def test_empty_and_one_token_sentences() -> None:
    fast, _ = both([-0.5, 0.5])
    assert fast.score(["", " "])[0] == []
    assert fast.rephrase(["", " "], 0.5) == ["", " "]
    [[only]] = fast.score(["a"])
    assert only == pytest.approx(1.0)
    assert fast.rephrase(["a"], 1.2) == ["a"]
    assert fast.score([]) == fast.mask([]) == fast.rephrase([]) == []


def test_text_at_the_limit_is_read_and_text_over_it_is_refused() -> None:
    limit = MODELS[0].config.max_position_embeddings
    fast, slow = both([-0.5, 0.5])
    text = "a" + " a" * (limit - 4)
    assert len(WORDS(text)["input_ids"]) == limit - 1  # the copies have one token more
    assert fast.score([text])[0] == pytest.approx(slow.score(text), rel=1e-4)
    with pytest.raises(DetoxError, match="tokens"):
        fast.score([text + " a"])
    method = Rewriter("tmarco", lambda texts: [text.upper() for text in texts], fast.fits)
    assert method.candidates([text + " a" * 9, "you", "you"]) == [[], ["YOU"], ["YOU"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_other_precisions_choose_what_the_description_chooses(dtype: torch.dtype) -> None:
    fast, slow = both([-0.5, 2.0], dtype)
    texts = [text for text, _ in tiny.sentences(6, seed=4)]
    loose = 0.05 if dtype == torch.bfloat16 else 1e-4
    for text, scores in zip(texts, fast.score(texts), strict=True):
        assert scores == pytest.approx(slow.score(text), rel=loose, abs=loose)
    if dtype != torch.bfloat16:
        assert fast.rephrase(texts, 1.1, True) == [slow.rephrase(text, 1.1, True) for text in texts]


def test_given_scores_are_used_and_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, _ = both([-0.5, 0.5])
    texts = ["you are a stupid friend"]
    scores = fast.score(texts)
    expected = fast.rephrase(texts, 1.0)
    monkeypatch.setattr(fast, "score", lambda _: pytest.fail("scored twice"))
    assert fast.rephrase(texts, 1.0, scores=scores) == expected


def test_wrong_numbers_of_experts_and_weights_are_refused() -> None:
    with pytest.raises(DetoxError, match="1 experts"):
        TMaRCo(MODELS[0], MODELS[1:2], [0.5], tokenizer=WORDS)
    with pytest.raises(DetoxError, match="3 weights"):
        TMaRCo(MODELS[0], MODELS[1:3], [0.5, 1, 2], tokenizer=WORDS)


def test_distance_golden_numbers() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4): JSD = 0.033822 nats; disjoint: ln 2; equal: 0."""
    p = torch.tensor([[0.5, 0.5], [1 - 1e-15, 1e-15], [0.3, 0.7]], dtype=torch.float64).log()
    q = torch.tensor([[0.25, 0.75], [1e-15, 1 - 1e-15], [0.3, 0.7]], dtype=torch.float64).log()
    found = jensen_shannon_distance(p, q)
    assert found.tolist() == pytest.approx([0.033822**0.5, np.log(2) ** 0.5, 0], abs=1e-4)


# As wide as BART-large; fewer layers, for what a layer takes is given back before the next.
SCORE = """
import resource
from pathlib import Path
from transformers import BartConfig, BartForConditionalGeneration
from llm_detox.processes import peak_memory_bytes
from llm_detox.rephrase.tmarco import TMaRCo
from tests.helpers import tiny_rewriters as tiny

words = tiny.bart_tokenizer()
model = BartForConditionalGeneration(BartConfig(
    vocab_size=50265, d_model=1024, encoder_layers=1, decoder_layers=2, encoder_attention_heads=16,
    decoder_attention_heads=16, encoder_ffn_dim=4096, decoder_ffn_dim=4096, max_position_embeddings=1024,
    decoder_start_token_id=2)).eval()
text = ""
while len(words(text)["input_ids"]) < 512:
    text += " idiot"
tmarco = TMaRCo(model, [model, model], tokenizer=words)
tmarco.score(["read"])
before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
copies = tmarco._copies(text)
tmarco._distances(copies[:40] + copies[-40:])  # some of 510: they fill groups of 16 copies, one after the other
tmarco.rephrase([text], 0.5, True, scores=[[float(i % 50 == 0) for i, _ in enumerate(copies)]])
print(len(copies[0][0]), len(copies), peak_memory_bytes() - before)
"""


@pytest.mark.slow
def test_512_tokens_at_the_width_of_bart_large_take_less_than_2_gib_beside_the_weights() -> None:
    out = subprocess.run([sys.executable, "-c", SCORE], check=True, stdout=subprocess.PIPE, text=True)
    tokens, copies, memory = map(int, out.stdout.split()[-3:])
    assert (tokens >= 512, copies) == (True, tokens - 3)
    print(f"{memory / 2**30:.2f} GiB beside the weights")
    assert memory < 2 * 2**30
