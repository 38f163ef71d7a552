"""TMaRCo's memory does not grow with the square of a text."""

from __future__ import annotations

import subprocess
import sys

import pytest

# As wide as BART-large; fewer layers, for what a layer takes is given back before the next.
SCORE = """
import resource
from pathlib import Path
from transformers import BartConfig, BartForConditionalGeneration
from llm_detox.hardware import peak_memory_bytes
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
