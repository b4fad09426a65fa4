"""The table is complete, and docs/compatibility.md is what it says."""

from collections import Counter
from typing import Any

import pytest

from descant_wire.anthropic import CountTokensRequest, MessagesRequest
from descant_wire.batches import CreateBatch
from descant_wire.chat import ChatCompletionRequest
from descant_wire.completions import CompletionRequest
from descant_wire.embeddings import EmbeddingRequest
from descant_wire.rerank import RerankRequest, ScoreRequest
from descant_wire.responses import CreateResponse
from descant_wire.tokenize import DetokenizeRequest, TokenizeRequest

from .fields import VLLM, reference
from .option import Api, OptionTable
from .page import PAGE, render
from .table import OPTIONS, TABLES

OURS: dict[Api, Any] = {
    Api.CHAT: ChatCompletionRequest,
    Api.COMPLETIONS: CompletionRequest,
    Api.EMBEDDINGS: EmbeddingRequest,
    Api.RERANK: RerankRequest,
    Api.SCORE: ScoreRequest,
    Api.RESPONSES: CreateResponse,
    Api.MESSAGES: MessagesRequest,
    Api.COUNT_TOKENS: CountTokensRequest,
    Api.BATCHES: CreateBatch,
    Api.TOKENIZE: TokenizeRequest,
    Api.DETOKENIZE: DetokenizeRequest,
}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.api.name.lower())
def test_every_option_has_its_row(table: OptionTable) -> None:
    known = set(reference().get(table.api, ())) | set(VLLM.get(table.api, ()))
    if table.api in OURS:
        known |= set(OURS[table.api].__struct_fields__)
    assert known - {row.name for row in table.rows} == set()


def test_every_api_has_its_table() -> None:
    assert {table.api for table in TABLES} == set(Api)


def test_no_option_has_two_rows() -> None:
    rows = Counter((option.api, option.name) for option in OPTIONS)
    assert [row for row, count in rows.items() if count > 1] == []


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run .venv/bin/python scripts/compatibility.py"
