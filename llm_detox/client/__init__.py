"""One text generation client for what these models are served by: Caikit over REST and gRPC, TGIS (fmaas) gRPC, and
OpenAI-compatible servers such as vLLM's. `AsyncTextGenerationClient` is the same, awaited.

    with TextGenerationClient("http://127.0.0.1:8080", "llm-detox") as client:
        print(client.generate("The best thing about", max_new_tokens=24).text)
        for chunk in client.stream("The best thing about"):
            print(chunk.text, end="", flush=True)
"""

from llm_detox.client.client import AsyncTextGenerationClient, TextGenerationClient
from llm_detox.client.types import Chunk, Generation, GenerationError, Prompt, Token

__all__ = [
    "AsyncTextGenerationClient", "Chunk", "Generation", "GenerationError", "Prompt", "TextGenerationClient", "Token"]
