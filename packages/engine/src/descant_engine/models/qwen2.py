"""Qwen 2 and 2.5: Llama with biases on q, k and v, which the shape says (`ModelShape.attention_bias`)."""

from descant_engine.models.llama import LlamaForCausalLM


class Qwen2ForCausalLM(LlamaForCausalLM):
    pass
