"""Down-levelling: what transformers 5 writes, put so that transformers 4.40 and 4.49 read the same model.

transformers 5 renamed `torch_dtype` and gathered the rope settings in `rope_parameters`; older readers do not look
there and silently fall back to defaults. Tokenizers are saved with a class name, a merge form and a chat template
file that they do not know.
"""

from __future__ import annotations

from typing import Any

from llm_detox.errors import DetoxError

READERS = {"TGIS": (4, 40), "Caikit": (4, 49)}  # transformers releases of the runtimes in use
_NEWEST = (5, 0)
_SINCE = {  # the first release that knows a model type
    "bloom": (4, 20), "codegen": (4, 20), "cohere": (4, 39), "falcon": (4, 33), "gemma": (4, 38), "gemma2": (4, 42),
    "gemma3_text": (4, 50), "gpt2": (4, 0), "gpt_bigcode": (4, 27), "gpt_neo": (4, 5), "gpt_neox": (4, 20),
    "gptj": (4, 11), "granite": (4, 45), "granitemoe": (4, 45), "llama": (4, 28), "mamba": (4, 39),
    "mistral": (4, 34), "mixtral": (4, 36), "mpt": (4, 32), "olmo": (4, 40), "olmo2": (4, 47), "opt": (4, 19),
    "persimmon": (4, 33), "phi": (4, 37), "phi3": (4, 41), "qwen2": (4, 37), "qwen2_moe": (4, 40), "qwen3": (4, 51),
    "qwen3_moe": (4, 51), "smollm3": (4, 53), "stablelm": (4, 38), "starcoder2": (4, 39), "xglm": (4, 14),
}
_ROPE_SINCE = {"default": (4, 0), "linear": (4, 31), "dynamic": (4, 31), "yarn": (4, 45), "longrope": (4, 43),
               "llama3": (4, 43)}
# A model type's own names for rope_theta and partial_rotary_factor, where older readers had others.
_ROPE_NAMES = {"gpt_neox": ("rotary_emb_base", "rotary_pct")}
_PRE_TOKENIZERS = {"BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation",
                   "Sequence", "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit"}


def old_config(config: dict[str, Any]) -> dict[str, Any]:
    """A `config.json` for old readers; transformers 5 reads it to the same settings.

    Raises:
        DetoxError: the rope settings differ by layer in a way that older readers have no words for.
    """
    old = {key: value for key, value in config.items() if not key.startswith("_") and key != "auto_map"}
    if "dtype" in old:
        old["torch_dtype"] = old.pop("dtype")
    rope = old.pop("rope_parameters", None)
    if rope:
        old.update(_old_rope(rope, str(config.get("model_type", ""))))
    return old


def old_generation_config(config: dict[str, Any]) -> dict[str, Any]:
    """A `generation_config.json` without private and unset keys."""
    return {key: value for key, value in config.items() if value is not None and not key.startswith("_")}


def old_tokenizer_config(config: dict[str, Any], templates: dict[str, str], inputs: list[str],
                         clean_up: bool) -> dict[str, Any]:
    """A `tokenizer_config.json` for old readers.

    Args:
        config: as transformers 5 wrote it.
        templates: chat templates by name; "default" is the one without a name.
        inputs: the model's inputs: older readers would add `token_type_ids`, which `generate` then refuses.
        clean_up: whether decoding removes blanks before punctuation; the default changed between releases.
    """
    dropped = {"backend", "is_local", "local_files_only", "auto_map", "extra_special_tokens"}
    old = {key: value for key, value in config.items() if key not in dropped}
    # This class takes everything from tokenizer.json; the others rebuild parts from what they believe is right.
    old["tokenizer_class"] = "PreTrainedTokenizerFast"
    old["model_input_names"] = inputs
    old["clean_up_tokenization_spaces"] = clean_up
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict) and extra:
        old["extra_special_tokens"] = extra
    elif isinstance(extra, list) and extra:
        old["additional_special_tokens"] = extra
    if set(templates) == {"default"}:
        old["chat_template"] = templates["default"]
    elif templates:
        old["chat_template"] = [{"name": name, "template": text} for name, text in sorted(templates.items())]
    return old


def old_tokenizer(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A `tokenizer.json` for old readers: merges as `"a b"` where that says the same."""
    merges = tokenizer.get("model", {}).get("merges")
    if not merges or isinstance(merges[0], str) or any(" " in part for pair in merges for part in pair):
        return tokenizer
    return {**tokenizer, "model": {**tokenizer["model"], "merges": [" ".join(pair) for pair in merges]}}


def unreadable(config: dict[str, Any], tokenizer: dict[str, Any], release: tuple[int, int]) -> list[str]:
    """The reasons why a release of transformers cannot read a down-levelled model; empty if it can.

    Args:
        config: the down-levelled `config.json`.
        tokenizer: the down-levelled `tokenizer.json`.
        release: such as (4, 40).
    """
    reasons = []
    kind = str(config.get("model_type", ""))
    since = _SINCE.get(kind, _NEWEST)
    if since > release:
        reasons.append(f"model type {kind!r} came with transformers {_shown(since)}")
    scaling = config.get("rope_scaling") or {}
    rope = str(scaling.get("rope_type") or scaling.get("type") or "default")
    if _ROPE_SINCE.get(rope, _NEWEST) > release:
        reasons.append(f"rope type {rope!r} came with transformers {_shown(_ROPE_SINCE.get(rope, _NEWEST))}")
    merges = tokenizer.get("model", {}).get("merges")
    if merges and not isinstance(merges[0], str) and release < (4, 45):
        reasons.append("the tokenizer merges tokens with blanks, which came with tokenizers 0.20")
    unknown = _types(tokenizer.get("pre_tokenizer")) - _PRE_TOKENIZERS
    if unknown:
        reasons.append(f"the tokenizer uses {', '.join(sorted(unknown))}, which is newer")
    return reasons


def _old_rope(rope: dict[str, Any], kind: str) -> dict[str, Any]:
    by_layer = {name: value for name, value in rope.items() if isinstance(value, dict)}
    if by_layer:
        return _old_layered_rope(by_layer)
    theta_name, partial_name = _ROPE_NAMES.get(kind, ("rope_theta", "partial_rotary_factor"))
    old: dict[str, Any] = {}
    if "rope_theta" in rope:
        old[theta_name] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        old[partial_name] = rope["partial_rotary_factor"]
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    rope_type = scaling.pop("rope_type", "default")
    if set(scaling) == {"factor"}:
        old["rope_scaling"] = {"type": rope_type, **scaling}  # up to 4.42 these two keys and no other were allowed
    elif rope_type != "default":
        old["rope_scaling"] = {"rope_type": rope_type, **scaling}
    return old


def _old_layered_rope(rope: dict[str, Any]) -> dict[str, Any]:
    full, local = rope.get("full_attention"), rope.get("sliding_attention")
    if full is None or local is None or local.get("rope_type", "default") != "default" or len(rope) != 2:
        raise DetoxError(f"rope settings by layer type ({', '.join(rope)}) have no form that older readers know",
                         place="config.json", remedy="serve this model with vLLM from its Hugging Face folder")
    return {**_old_rope(full, ""), "rope_local_base_freq": local["rope_theta"]}


def _types(part: Any) -> set[str]:
    if not isinstance(part, dict):
        return set()
    inner = part.get("pretokenizers") or []
    return {str(part.get("type"))}.union(*(_types(one) for one in inner)) if inner else {str(part.get("type"))}


def _shown(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))
