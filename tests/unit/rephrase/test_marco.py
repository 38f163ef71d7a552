"""MaRCo's product of experts against a slow decoding without cache."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from llm_detox.rephrase.marco import PRESETS, Decoding, MaRCo, penalised, symmetrised_kl, words
from tests.helpers import tiny_rewriters as tiny

WORDS = tiny.bart_tokenizer()
BASE, EXPERT, ANTI = (tiny.bart(seed, WORDS) for seed in range(3))
TEXTS = [text for text, _ in tiny.sentences(5, seed=6)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    yield from tiny.one_thread()


def marco(decoding: Decoding) -> MaRCo:
    return MaRCo(BASE, EXPERT, ANTI, tokenizer=WORDS, decoding=decoding, batch_tokens=120)


def slow_rewrite(original: str, masked: str, how: Decoding) -> str:
    """The published loop: `</s><s>` first, both of them penalised like what follows."""
    chosen = [WORDS.eos_token_id, WORDS.bos_token_id]
    read = {BASE: original, EXPERT: masked, ANTI: masked}
    weights = {BASE: 1 / how.temperature, EXPERT: how.expert_weight, ANTI: -how.anti_weight}
    for _ in range(how.max_new_tokens):
        product = torch.zeros(len(WORDS))
        for model, text in read.items():
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([WORDS(text)["input_ids"]]),
                               decoder_input_ids=torch.tensor([chosen])).logits[0, -1]
            product += weights[model] * logits
        for token in set(chosen):
            product[token] = product[token] / how.repetition_penalty if product[token] > 0 \
                else product[token] * how.repetition_penalty
        token = int(product.argmax())
        if token == WORDS.eos_token_id:
            break
        chosen.append(token)
    return WORDS.decode(chosen, skip_special_tokens=True).strip()


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_rewrites_equal_decoding_one_text_without_cache(penalty: float) -> None:
    how = Decoding(1.5, 4.25, 2.5, penalty, max_new_tokens=8)
    model = marco(how)
    masked = model.mask(TEXTS, 1.2)
    assert any("<mask>" in text for text in masked)
    expected = [slow_rewrite(text, gaps, how) if "<mask>" in gaps else text
                for text, gaps in zip(TEXTS, masked, strict=True)]
    assert model.rephrase(TEXTS, 1.2) == expected


def test_the_end_is_penalised_as_a_repetition() -> None:
    """`</s>` stands at the beginning. With a penalty that leaves nothing of a repeated token's lead no text ends."""
    how = Decoding(1.5, 4.25, 2.5, 1e9, max_new_tokens=6)
    read = [WORDS(text)["input_ids"] for text in TEXTS]
    product = marco(how)._decode(read, read)
    assert all(len(set(ids)) == how.max_new_tokens and WORDS.bos_token_id not in ids for ids in product)


def test_punctuation_is_no_word() -> None:
    text = '"you\'re a $$ f**k , ok ?!"'
    assert [text[start:end] for start, end in words(text)] == ["you're", "a", "f**k", "ok"]


def test_a_mask_takes_the_word_without_its_punctuation_and_the_rest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = marco(PRESETS["magr"])
    monkeypatch.setattr(model, "score", lambda texts: [[0.9, 1.2, 1.3, 0.6]])
    assert model.mask(['so,  "foolish" fools! \u2026yes'], 1.2) == ['so,  "<mask>" <mask>! \u2026yes']


def test_words_are_scored_by_their_share_of_the_disagreement() -> None:
    model = marco(PRESETS["magr"])
    for text, row in zip(TEXTS, model.score(TEXTS), strict=True):
        parts = text.split()
        slow = []
        for i in range(len(parts)):
            mark = parts[i][len(parts[i].rstrip(".")):]  # the sentences have no other punctuation
            ids = WORDS(" ".join([*parts[:i], f"<mask>{mark}", *parts[i + 1:]]))["input_ids"]
            place = ids.index(WORDS.mask_token_id)
            with torch.no_grad():
                p, q = (one(input_ids=torch.tensor([ids])).logits[0, place].double().log_softmax(-1)
                        for one in (EXPERT, ANTI))
            slow.append(float((p.exp() * (p - q)).sum() + (q.exp() * (q - p)).sum()) / 2)
        mean = sum(slow) / len(slow)
        assert row == pytest.approx([value / mean for value in slow], rel=1e-3)


def test_presets_are_the_papers() -> None:
    assert {name: (one.anti_weight, one.expert_weight, one.temperature, one.repetition_penalty)
            for name, one in PRESETS.items()} == {
        "magr": (1.5, 4.25, 2.5, 1.0), "sbf": (1.5, 5.0, 2.9, 1.5), "dynahate": (1.5, 4.75, 2.5, 1.5)}


def test_text_without_a_mask_and_empty_text_come_back() -> None:
    model = marco(PRESETS["magr"])
    assert model.rephrase(["one", ""], 1.2) == ["one", ""]


def test_golden_numbers() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4): KL(p|q) = 0.14384, KL(q|p) = 0.13081."""
    p, q = (torch.tensor([row], dtype=torch.float64).log() for row in ([0.5, 0.5], [0.25, 0.75]))
    assert symmetrised_kl(p, q).item() == pytest.approx((0.14384 + 0.13081) / 2, abs=1e-5)
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    assert penalised(logits, [[0, 1, 0]], 2.0).tolist() == [[1.0, -4.0, 1.0]]
