"""`llm-detox chat`."""

from __future__ import annotations

from typing import Annotated

import typer

from llm_detox.cli import served as of


def command(
    url: of.Url = None,
    grpc: of.Grpc = None,
    fmaas: of.Fmaas = None,
    openai: of.OpenAi = None,
    model: of.Model = "llm-detox",
    template: Annotated[str | None, typer.Option(
        help="Model whose chat template is used; without one an OpenAI-compatible server uses its own, and others get "
             "`User: ...` lines.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 256,
    sample: of.Sample = False,
    temperature: of.Temperature = None,
    top_p: of.TopP = None,
    top_k: of.TopK = None,
    seed: of.Seed = None,
    guard: of.GuardKind = None,
    guard_threshold: of.Threshold = 0.5,
    timeout: Annotated[float, typer.Option(help="Seconds for an answer.")] = 300.0,
    ca: of.Ca = None,
    cert: of.Cert = None,
    key: of.Key = None,
    tls: of.Tls = False,
) -> None:
    """Talk with a served model. Ctrl-C ends an answer, Ctrl-D the conversation."""
    from llm_detox.client import TextGenerationClient
    from llm_detox.guard.filter import GuardedClient
    from llm_detox.guard.terminal_chat import chat

    target = of.served(url, grpc, fmaas, openai, model, ca, cert, key, tls=tls)
    given = of.parameters(max_new_tokens=max_new_tokens, sample=sample, temperature=temperature, top_p=top_p,
                          top_k=top_k, seed=seed)
    judge = of.opened_guard(guard, guard_threshold)
    with TextGenerationClient(**target.options(timeout=timeout)) as client:
        chat(GuardedClient(client, judge) if judge else client, given, template=template, system=system)
