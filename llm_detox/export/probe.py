"""Greedy tokens of Hugging Face folders, as one JSON line. Runs by path in any interpreter with transformers:

    python probe.py FOLDER [FOLDER ...] < prompts.json > tokens.json

It must stay one file that imports nothing of ours: the other interpreter has only old releases.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    import tokenizers  # type: ignore[import-untyped,unused-ignore]
    import transformers

    asked = json.load(sys.stdin)
    print(json.dumps({"transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
                      "models": [greedy(folder, asked["prompts"], int(asked["max_new_tokens"]))
                                 for folder in sys.argv[1:]]}))


def greedy(folder: str, prompts: list[str], count: int) -> dict[str, Any]:
    """The continuations and the chat template of one model, or the error that prevented it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # `torch_dtype` is the name that every release takes.
        model: Any = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, trust_remote_code=False)
        model.eval()
        answers = []
        for prompt in prompts:
            inputs = tokenizer(prompt, return_tensors="pt")
            with torch.no_grad():
                output = model.generate(**inputs, max_new_tokens=count, do_sample=False, num_beams=1,
                                        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0)
            prompt_ids = inputs["input_ids"][0].tolist()
            new_ids = output[0].tolist()[len(prompt_ids):]
            answers.append({"prompt_ids": prompt_ids, "new_ids": new_ids,
                            "text": tokenizer.decode(new_ids, skip_special_tokens=True)})
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"answers": answers, "chat_template": tokenizer.chat_template}


if __name__ == "__main__":
    main()
