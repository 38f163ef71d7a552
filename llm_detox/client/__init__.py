"""One text generation client for what these models are served by: Caikit over REST and gRPC, and TGIS (fmaas) gRPC.

    with TextGenerationClient("http://127.0.0.1:8080", "llm-detox") as client:
        print(client.generate("The best thing about", max_new_tokens=24).text)
        for chunk in client.stream("The best thing about"):
            print(chunk.text, end="", flush=True)
"""

from llm_detox.client.client import TextGenerationClient
from llm_detox.client.types import Chunk, Generation, GenerationError, Token

__all__ = ["Chunk", "Generation", "GenerationError", "TextGenerationClient", "Token"]
