"""The library's front door for scripts: prompts in, texts out, in this process.

from descant_engine import LLM, SamplingParams
LLM("HuggingFaceTB/SmolLM2-135M-Instruct").generate(["Once upon a time"], SamplingParams(max_tokens=32))
"""
