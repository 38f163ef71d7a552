"""A stand-in for vLLM, as far as its OpenAI server goes."""
