"""A tiny model for the conformance suite: random weights, a token for each byte, and a template that knows tools,
thoughts and documents as the templates of real chat models do."""

import json
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

EOS: Final = "<eos>"
MARKS: Final = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""One token each, as in Qwen 3. They are no special tokens: the text shows them."""
ALPHABET: Final = sorted(pre_tokenizers.ByteLevel.alphabet())
MAX_MODEL_LEN: Final = 2048
CHAT_TEMPLATE: Final = (
    "{% if tools %}<system>Call as <tool_call>{...}</tool_call>: {{ tools | tojson }}{{ '\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "<{{ message['role'] }}>"
    "{% if message['name'] %}{{ message['name'] }}: {% endif %}"
    "{% if message['reasoning_content'] %}<think>{{ message['reasoning_content'] }}</think>{% endif %}"
    "{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}"
    "<tool_call>{\"name\": \"{{ call['function']['name'] }}\","
    " \"arguments\": {{ call['function']['arguments'] | tojson }}}</tool_call>"
    "{% endfor %}"
    "{% if not loop.last or not continue_final_message %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking %}<think>{% endif %}{% endif %}"
)
CONFIG: Final = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": MAX_MODEL_LEN,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}


def write_model_folder(folder: Path) -> None:
    """Config, tokenizer and template; the weights are the engine's own dummies."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    _tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def token_id(character: str) -> int:
    """Of one printable ASCII character."""
    return ALPHABET.index(character) + 1


def mark_id(mark: str) -> int:
    return len(ALPHABET) + 1 + MARKS.index(mark)


def _tokenizer() -> Tokenizer:
    vocabulary = {EOS: 0} | {symbol: index + 1 for index, symbol in enumerate(ALPHABET)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS])
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    return tokenizer
