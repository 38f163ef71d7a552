"""`llm-detox ask`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_detox.cli.common import AsJson
from llm_detox.errors import UsageError


def command(
    text: Annotated[str, typer.Argument(help="The text to continue.", show_default=False)],
    url: Annotated[str | None, typer.Option(help="Caikit REST, such as http://127.0.0.1:8080")] = None,
    grpc: Annotated[str | None, typer.Option(help="Caikit gRPC, host:port")] = None,
    fmaas: Annotated[str | None, typer.Option(help="TGIS gRPC, host:port")] = None,
    model: Annotated[str, typer.Option("--model", help="The id under which the model is served.")] = "llm-detox",
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 40,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")] = False,
    temperature: Annotated[float | None, typer.Option(help="With --sample.")] = None,
    top_p: Annotated[float | None, typer.Option(help="With --sample.")] = None,
    top_k: Annotated[int | None, typer.Option(help="With --sample.")] = None,
    seed: Annotated[int | None, typer.Option(help="With --sample.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End behind this text. Repeatable.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for the whole answer.")] = 120.0,
    ca: Annotated[Path | None, typer.Option(help="PEM file of the authority to trust.")] = None,
    cert: Annotated[Path | None, typer.Option(help="Client certificate.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="TLS for --grpc and --fmaas (--ca implies it).")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask a served model. A bearer token is read from LLM_DETOX_TOKEN."""
    from llm_detox.client import TextGenerationClient

    given = {"max_new_tokens": max_new_tokens, "decoding_method": "SAMPLING" if sample else "GREEDY",
             "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed, "stop_sequences": stop}
    parameters: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    address = _address(url, grpc, fmaas, secure=tls or ca is not None)
    with TextGenerationClient(address, model, timeout=timeout, ca_file=ca, cert_file=cert, key_file=key,
                              token=os.environ.get("LLM_DETOX_TOKEN")) as client:
        if stream and not as_json:
            for chunk in client.stream(text, **parameters):
                print(chunk.text, end="", flush=True)
            print()
            return
        answer = client.generate(text, **parameters)
    print(json.dumps(asdict(answer), ensure_ascii=False) if as_json else answer.text)


def _address(url: str | None, grpc: str | None, fmaas: str | None, *, secure: bool) -> str:
    given = [one for one in (url, grpc, fmaas) if one]
    if len(given) != 1:
        raise UsageError("give exactly one address", place="ask", remedy="--url http://host:port, or --grpc host:port")
    if url:
        return url
    scheme = ("grpc" if grpc else "fmaas") + ("s" if secure else "")
    return f"{scheme}://{given[0].partition('://')[2] or given[0]}"
