"""One row per admitted request, on the device: its tokens, its block table, its adapter. Rows outlive steps;
a step gathers what it needs from them (`input_batch`). Preemption is removal.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from descant_engine.forward_context import BASE_SLOT
from descant_engine.runner.transfer import to_device
from descant_engine.scheduler.plan import AdmittedRequest, ScheduledRequest, StepPlan


class RequestStates:
    """Who has which row, and the rows. Sampled tokens are written here by the device itself (`append_sampled`), so
    the next step can read them before the host knows what they are.
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int, device: torch.device) -> None:
        max_blocks = -(-max_model_len // block_size)
        self.device = device
        self.max_model_len = max_model_len
        self.spare_row = max_num_seqs
        """Nobody's: what pads a batch. Its block table is all zeros, its adapter the base."""
        num_rows = max_num_seqs + 1
        # One column more than the context: the last step's sample has a place to go even if nothing reads it.
        self.token_ids = torch.zeros(num_rows, max_model_len + 1, dtype=torch.int64, device=device)
        self.block_tables = torch.zeros(num_rows, max_blocks, dtype=torch.int32, device=device)
        self.adapter_slots = torch.full((num_rows,), BASE_SLOT, dtype=torch.int32, device=device)
        self.num_prompt_tokens = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._row_of: dict[str, int] = {}
        self._adapter_slot_of: dict[str, int] = {}
        self._num_blocks: dict[str, int] = {}
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))

    def row(self, request_id: str) -> int:
        return self._row_of[request_id]

    def adapter_slot(self, request_id: str) -> int:
        return self._adapter_slot_of[request_id]

    def apply(self, plan: StepPlan) -> None:
        """Removals, admissions, the blocks that scheduled requests got, and the drafts that come with them."""
        for request_id in plan.removed:
            self._remove(request_id)
        self._admit(plan.admitted)
        self._append_blocks(plan.scheduled)
        self._write_drafts(plan.scheduled)

    def append_sampled(self, rows: Tensor, positions: Tensor, token_ids: Tensor) -> None:
        """Writes token_ids [n] to columns `positions` of `rows`."""
        self.token_ids[rows, positions] = token_ids

    def _remove(self, request_id: str) -> None:
        self._free_rows.append(self._row_of.pop(request_id))
        del self._adapter_slot_of[request_id], self._num_blocks[request_id]

    def _admit(self, admitted: Sequence[AdmittedRequest]) -> None:
        """All of them in two copies, neither of which the host waits for; a number written into a device tensor by
        itself would wait for every step before it."""
        if not admitted:
            return
        rows = np.array([self._take_row(request) for request in admitted], dtype=np.int64)
        facts = [(request.adapter_slot, request.num_prompt_tokens) for request in admitted]
        where, slots, num_prompt_tokens = to_device(np.vstack([rows, np.array(facts).T]), self.device)
        self.adapter_slots[where] = slots.to(torch.int32)
        self.num_prompt_tokens[where] = num_prompt_tokens
        lengths = np.array([len(request.token_ids) for request in admitted])
        columns = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
        tokens = np.concatenate([np.asarray(request.token_ids, dtype=np.int64) for request in admitted])
        token_rows, token_columns, token_ids = to_device(
            np.stack([np.repeat(rows, lengths), columns, tokens]), self.device
        )
        self.token_ids[token_rows, token_columns] = token_ids

    def _take_row(self, admitted: AdmittedRequest) -> int:
        row = self._free_rows.pop()
        self._row_of[admitted.request_id] = row
        self._adapter_slot_of[admitted.request_id] = admitted.adapter_slot
        self._num_blocks[admitted.request_id] = 0
        return row

    def _write_drafts(self, scheduled: Sequence[ScheduledRequest]) -> None:
        """After the newest known token. What is not right there is written over by the samples."""
        cells = [
            (self._row_of[request.request_id], request.num_computed_tokens + place, token_id)
            for request in scheduled
            if request.draft_token_ids
            for place, token_id in enumerate(request.draft_token_ids, start=1)
        ]
        if cells:
            rows, columns, token_ids = to_device(np.array(cells, dtype=np.int64).T, self.device)
            self.token_ids[rows, columns] = token_ids

    def _append_blocks(self, scheduled: Sequence[ScheduledRequest]) -> None:
        rows: list[int] = []
        columns: list[int] = []
        block_ids: list[int] = []
        for request in scheduled:
            if not request.new_block_ids:
                continue
            first = self._num_blocks[request.request_id]
            last = self._num_blocks[request.request_id] = first + len(request.new_block_ids)
            rows += [self._row_of[request.request_id]] * len(request.new_block_ids)
            columns += range(first, last)
            block_ids += request.new_block_ids
        if rows:
            where = to_device(np.array([rows, columns, block_ids], dtype=np.int64), self.device)
            self.block_tables[where[0], where[1]] = where[2].to(torch.int32)
