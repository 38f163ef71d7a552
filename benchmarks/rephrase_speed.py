"""How much faster TMaRCo runs than its straightforward form: same models, same device, same sentences, same output.

    python -m benchmarks.rephrase_speed --data ../shared/data/paradetox_dev.tsv --sentences 48

The straightforward form takes one sentence at a time: all copies of a sentence in one batch with whole logits, then
one mask after the other. The models are BART-base sized with random weights, since speed does not depend on them.
Each form runs in a process of its own, so that its peak memory is its own. `--mixed` goes on to data in which 4 in 5
records are clean (the human rewrites of other rows): the straightforward form works on all of them, as the reference
does; the product asks a scorer first and works on what it finds toxic.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from llm_detox.processes import matmul_gflops, peak_memory_bytes
from llm_detox.rephrase.tmarco import TMaRCo

SIZES = {"base": (768, 6, 12, 50265), "large": (1024, 12, 16, 50265), "small": (128, 2, 4, 5000)}
THRESHOLD = 1.0015  # random experts disagree everywhere alike; this masks about a fifth of the subwords


def main() -> None:
    """Run both forms in their own processes and compare."""
    options = parsed()
    if options.form:
        print(json.dumps(run_form(options)))
        return
    outcome = {form: child(form) for form in ("straightforward", "batched")}
    slow, fast = outcome["straightforward"], outcome["batched"]
    equal = sum(a == b for a, b in zip(slow["texts"], fast["texts"], strict=True))
    print(f"sentences {len(slow['texts'])}, changed {fast['changed']}, same output {equal}")
    print(f"device {slow['device']}, threads {slow['threads']}")
    print("| form | sentences/s | seconds | processor seconds | peak memory | floor of its arithmetic |")
    print("|---|---|---|---|---|---|")
    for name, one in outcome.items():
        floor = f"{one['tflop']:.1f} TFLOP, {one['tflop'] * 1000 / one['gflops'] / one['seconds']:.0%} of the time"
        print(f"| {name} | {one['rate']:.3f} | {one['seconds']:.1f} | {one['processor']:.1f} "
              f"| {one['memory'] / 2**30:.2f} GiB | {floor} |")
    print(f"speedup {fast['rate'] / slow['rate']:.2f}, by processor time {slow['processor'] / fast['processor']:.2f}")
    if options.mixed:
        mixed = {name: one["seconds"] + one["clean_seconds"] for name, one in outcome.items()}
        print(f"speedup where 4 in 5 are clean {mixed['straightforward'] / mixed['batched']:.1f} "
              f"({mixed['straightforward']:.1f} against {mixed['batched']:.1f} s, {fast['clean_seconds']:.2f} s of it "
              f"for the gate over {fast['records']} records)")
    if equal != len(slow["texts"]):
        sys.exit("the two forms do not agree")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="TSV, the sentence in its first column")
    parser.add_argument("--sentences", type=int, default=48)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--form", choices=["straightforward", "batched"], help=argparse.SUPPRESS)
    return parser.parse_args()


def child(form: str) -> dict[str, Any]:
    out = subprocess.run([sys.executable, *sys.argv, "--form", form], check=True, stdout=subprocess.PIPE, text=True,
                         env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return found


def run_form(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_grad_enabled(False)
    lines = options.data.read_text("utf-8").split("\n")[1:]
    texts, clean = sentences(lines, options.sentences)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    words = tokenizer(lines[:3000], SIZES[options.size][-1])
    base, anti, expert = (bart(options.size, seed).to(device) for seed in range(3))
    gflops = matmul_gflops() if device == "cpu" else 1e6
    fast = TMaRCo(base, [anti, expert], tokenizer=words, batch_tokens=options.batch_tokens)
    fast.rephrase(texts[:1], THRESHOLD, True)  # warm up
    started, worked = time.perf_counter(), time.process_time()
    if options.form == "batched":
        found = fast.rephrase(texts, THRESHOLD, True)
    else:
        slow = Straightforward(base, [anti, expert], [-0.5, 0.5], words)
        found = [slow.rephrase(text) for text in texts]
    seconds, processor = time.perf_counter() - started, time.process_time() - worked
    memory = peak_memory_bytes()
    started = time.perf_counter()
    if options.mixed and options.form == "batched":
        gate([*texts, *clean])
    elif options.mixed:
        for text in clean:
            slow.rephrase(text)
    changed = sum(a != b for a, b in zip(texts, found, strict=True))
    return {"texts": found, "changed": changed, "seconds": seconds, "rate": len(texts) / seconds, "memory": memory,
            "processor": processor, "clean_seconds": time.perf_counter() - started, "records": len(texts) + len(clean),
            "tflop": arithmetic(fast, texts, options.size, options.form == "batched") / 1e12, "gflops": gflops,
            "device": device, "threads": torch.get_num_threads()}


def sentences(lines: list[str], count: int) -> tuple[list[str], list[str]]:
    """So many toxic sentences, and four times as many clean ones of the same kind, by the gate's own verdict."""
    rows = [row for line in lines[:: max(1, len(lines) // (8 * count))] if len(row := line.split("\t")) > 1]
    originals, rewrites = [row[0] for row in rows], [row[1] for row in rows]
    toxic = [text for text, found in zip(originals, gate(originals), strict=True) if found]
    clean = [text for text, found in zip(rewrites, gate(rewrites), strict=True) if not found]
    return toxic[:count], clean[: 4 * count]


class Straightforward:
    """The algorithm as it is described, one sentence and one mask at a time."""

    def __init__(self, base: Any, experts: list[Any], weights: list[float], words: PreTrainedTokenizerFast) -> None:
        self.base, self.experts, self.weights, self.words = base, experts, weights, words
        words.pad_token = words.eos_token

    def score(self, text: str) -> np.ndarray:
        tokens = self.words.tokenize(text)
        copies = []
        for i in range(len(tokens)):
            copy = list(tokens)
            copy[i] = self.words.pad_token + self.words.mask_token
            copies.append(self.words.convert_tokens_to_string(copy))
        batch = self.words(copies, return_tensors="pt", padding=True, return_token_type_ids=False).to(self.base.device)
        places = (batch["input_ids"] == self.words.mask_token_id).nonzero()[:, 1]
        rows = torch.arange(len(places))
        p, q = (expert(**batch).logits[rows, places].softmax(-1).double().cpu().numpy() for expert in self.experts)
        m = (p + q) / 2
        distances = np.sqrt(((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2)
        return distances / distances.mean()

    def rephrase(self, text: str) -> str:
        scores = self.score(text)
        if scores.max() <= THRESHOLD:
            return text
        masked = self.words.convert_tokens_to_string(
            [self.words.mask_token if score > THRESHOLD else token
             for token, score in zip(self.words.tokenize(text), scores, strict=True)])
        base = self.logits(self.base, text)
        original = self.words(text)["input_ids"][1:-1]
        chosen: list[int] = []
        for i, token in enumerate(self.words.tokenize(masked)):
            if token != self.words.mask_token:
                chosen.append(self.words.convert_tokens_to_ids(token))
                continue
            ids = [*chosen, self.words.mask_token_id, *original[i + 1:]]
            gapped = self.words.convert_tokens_to_string(self.words.convert_ids_to_tokens(ids))
            product = base[min(1 + i, len(base) - 1)].clone()
            place = self.words(gapped)["input_ids"].index(self.words.mask_token_id)
            for weight, expert in zip(self.weights, self.experts, strict=True):
                product += weight * self.logits(expert, gapped)[place]
            chosen.append(int(product.argmax()))
        return str(self.words.decode(chosen, clean_up_tokenization_spaces=True, skip_special_tokens=True))

    def logits(self, model: Any, text: str) -> torch.Tensor:
        found: torch.Tensor = model(
            **self.words(text, return_tensors="pt", return_token_type_ids=False).to(model.device)).logits[0]
        return found


def arithmetic(model: TMaRCo, texts: list[str], size: str, cut: bool) -> float:
    """Floating point operations of the scoring, by matrix products alone; filling comes on top.

    Cut: the decoder up to the mask, its last layer and the output layer at the mask only.
    """
    width, layers, _, vocabulary = SIZES[size]
    total = 0.0
    for text in texts:
        for ids, place in model._copies(text):
            encoder, decoder = len(ids), place + 1 if cut else len(ids)
            total += width**2 * layers * 12 * encoder
            total += width**2 * (layers - cut) * (14 * decoder + 2 * encoder) + (width**2 * 16 if cut else 0)
            total += (1 if cut else len(ids)) * width * vocabulary
    return 2 * total * len(model.experts)


def gate(texts: list[str]) -> list[bool]:
    """Whether each text is toxic, by the product's default scorer and threshold."""
    from llm_detox.recipe.rephrase import DetoxifySection
    from llm_detox.recipe.scorers import ScorerSection
    from llm_detox.scoring.load import load_scorer

    threshold = DetoxifySection().toxic_threshold
    return [score is None or score >= threshold for score in load_scorer(ScorerSection(kind="ngram")).score(texts)]


def bart(size: str, seed: int) -> BartForConditionalGeneration:
    width, layers, heads, vocabulary = SIZES[size]
    torch.manual_seed(seed)
    model = BartForConditionalGeneration(BartConfig(
        vocab_size=vocabulary, d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, max_position_embeddings=1024, init_std=0.05, bos_token_id=0, pad_token_id=1,
        eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2))
    model.eval()
    return model


def tokenizer(lines: list[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE like BART's, trained on the sentences; what is left of the models' vocabulary means nothing."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=4000, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    raw.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    parts = json.loads(raw.to_str())
    vocabulary = parts["model"]["vocab"]
    vocabulary.update({f"\u0120unused{number}": number for number in range(len(vocabulary), size)})
    raw = Tokenizer.from_str(json.dumps(parts))
    special = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, **{f"{name}_token": token for name, token in special.items()})


if __name__ == "__main__":
    main()
