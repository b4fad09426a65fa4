"""Which options there are: those of OpenAI's and Anthropic's references, by their clients' own types, and vLLM's."""

from functools import cache
from typing import Final

from openai.types import batch_create_params, completion_create_params, embedding_create_params, file_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from .option import Api


def _fields(parameters: type) -> frozenset[str]:
    return frozenset(parameters.__annotations__)


@cache
def reference() -> dict[Api, frozenset[str]]:
    # Anthropic's client takes seconds to import: not in every process of a test run, only where the suite itself runs.
    from anthropic.types.message_count_tokens_params import MessageCountTokensParams
    from anthropic.types.message_create_params import MessageCreateParamsStreaming

    return {
        Api.CHAT: _fields(chat_create_params.CompletionCreateParamsStreaming),
        Api.COMPLETIONS: _fields(completion_create_params.CompletionCreateParamsStreaming),
        Api.EMBEDDINGS: _fields(embedding_create_params.EmbeddingCreateParams),
        Api.RESPONSES: _fields(response_create_params.ResponseCreateParamsStreaming),
        Api.MESSAGES: _fields(MessageCreateParamsStreaming),
        Api.COUNT_TOKENS: _fields(MessageCountTokensParams),
        Api.FILES: _fields(file_create_params.FileCreateParams),
        Api.BATCHES: _fields(batch_create_params.BatchCreateParams),
    }


_SAMPLING = """
    allowed_token_ids bad_words best_of cache_salt early_stopping ec_transfer_params guided_choice
    guided_decoding_backend guided_grammar guided_json guided_regex guided_whitespace_pattern ignore_eos
    include_stop_str_in_output kv_transfer_params length_penalty logit_bias logits_processors logprob_token_ids min_p
    min_tokens priority prompt_logprobs repetition_detection repetition_penalty request_id response_format
    return_mm_kwargs return_token_ids return_token_offsets return_tokens_as_token_ids routed_experts_prompt_start
    session_id skip_special_tokens spaces_between_special_tokens stop_token_ids stream_interval structural_tag
    structured_outputs thinking_token_budget top_k truncate_prompt_tokens truncation_side use_beam_search vllm_xargs
    watermarking
"""
_CHAT = """
    add_generation_prompt add_special_tokens chat_template chat_template_kwargs continue_final_message documents echo
    include_reasoning media_io_kwargs mm_processor_kwargs return_prompt_text
"""
_POOLING = """
    truncate_prompt_tokens truncation_side priority request_id mm_processor_kwargs use_activation chat_template user
"""

_TOKENIZE = """
    model prompt messages add_special_tokens add_generation_prompt continue_final_message return_token_strs
    chat_template chat_template_kwargs tools media_io_kwargs mm_processor_kwargs
"""

VLLM: Final[dict[Api, frozenset[str]]] = {
    Api.CHAT: frozenset(f"{_SAMPLING} {_CHAT}".split()),
    Api.COMPLETIONS: frozenset(f"{_SAMPLING} add_special_tokens prompt_embeds".split()),
    Api.EMBEDDINGS: frozenset(
        f"{_POOLING} add_special_tokens messages normalize embed_dtype endianness add_generation_prompt cache_salt"
        " continue_final_message chat_template_kwargs media_io_kwargs".split()
    ),
    Api.RERANK: frozenset(f"{_POOLING} model query documents top_n max_tokens_per_doc".split()),
    Api.SCORE: frozenset(f"{_POOLING} model text_1 text_2".split()),
    Api.TOKENIZE: frozenset(_TOKENIZE.split()),
    Api.DETOKENIZE: frozenset({"model", "tokens"}),
}
"""What vLLM 0.25 and its predecessors take beyond the reference, or where there is none."""


def source_of(api: Api, name: str) -> str:
    if name in reference().get(api, ()):
        return "Anthropic" if api in (Api.MESSAGES, Api.COUNT_TOKENS) else "OpenAI"
    return "vLLM" if name in VLLM.get(api, ()) else "other"
