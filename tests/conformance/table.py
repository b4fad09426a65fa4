"""All options, in the order of docs/compatibility.md."""

from . import chat_options, completion_options, form_options, tool_options, vllm_options
from .batch_options import BATCHES, FILES
from .count_options import COUNT_TOKENS
from .message_options import MESSAGES
from .option import Option
from .pooling_options import EMBEDDINGS, RERANK, SCORE
from .response_options import RESPONSES
from .sampling_options import CHAT, COMPLETIONS
from .tokenize_options import DETOKENIZE, TOKENIZE

MODULES = (vllm_options, form_options, chat_options, tool_options, completion_options)
"""They fill the tables as they are imported."""
TABLES = (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    RERANK,
    SCORE,
    RESPONSES,
    FILES,
    BATCHES,
    MESSAGES,
    COUNT_TOKENS,
    TOKENIZE,
    DETOKENIZE,
)
OPTIONS: tuple[Option, ...] = tuple(option for table in TABLES for option in table.rows)
