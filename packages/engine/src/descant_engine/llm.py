"""The library's front door for scripts: prompts in, texts out, in this process.

from descant_engine import LLM, SamplingParams
outputs = LLM("HuggingFaceTB/SmolLM2-135M-Instruct").generate(["Once upon a time"], SamplingParams(max_tokens=32))
print(outputs[0].text)
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Unpack

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig, EngineOptions
from descant_engine.engine import Engine
from descant_engine.frontend import Chat, Frontend, Prompt
from descant_engine.outputs import OutputReader, PooledOutput, RequestOutput, chosen_samples
from descant_engine.pooling import Task
from descant_engine.pooling_inputs import Pair, PoolingInput, PoolingInputs
from descant_engine.request import samples_of
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.stats import SchedulerStats
from descant_engine.speculation.config import SpeculativeConfig, read_speculative_config
from descant_engine.text.chat_template import ChatMessage

UNLIMITED = sys.maxsize
"""A script's list of prompts is a queue of any length; a limit is for servers."""

Conversation = Sequence[ChatMessage]
FloatArray = npt.NDArray[np.float32]


class LLM:
    """A model ready to answer. Not thread-safe; `AsyncEngine` is for servers.

    Args:
        model: a folder with safetensors, a .gguf file, or a hub id.
        speculative_config: how tokens are guessed, also as vLLM's mapping: {"method": "ngram"}, or {"model": ...}.
        options: any other field of `EngineConfig`, by name.

    Raises:
        ValueError: the model or an option cannot be served; the message says why.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        speculative_config: SpeculativeConfig | Mapping[str, object] | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        if isinstance(speculative_config, Mapping):
            speculative_config = read_speculative_config(speculative_config)
        options.setdefault("max_num_queued_requests", UNLIMITED)
        config = resolve(EngineConfig(model=str(model), speculative_config=speculative_config, **options))
        self._frontend = Frontend(config)
        self._pooling_inputs = PoolingInputs(config, self._frontend.tokenizer)
        self._engine = Engine(config)
        self._request_numbers = count()

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Continues every prompt (text, or token ids); outputs come back in the prompts' order, `params.n` for each.

        `params` and `adapter` (a name given to `load_adapter`; None is the base model) are one for all prompts, or one
        for each.

        Raises:
            ValueError: a prompt, its params or its adapter is at fault; nothing has been generated then. A grammar
                that turns out to be impossible ends all.
        """
        self._frontend.require(Task.GENERATE)
        batch = [prompts] if isinstance(prompts, str) else list(prompts)
        all_params = [params or SamplingParams()] * len(batch) if isinstance(params, SamplingParams | None) else params
        adapters: Sequence[str | None] = [adapter] * len(batch) if isinstance(adapter, str | None) else adapter
        for name, given in (("params", all_params), ("adapter", adapters)):
            if len(given) != len(batch):
                raise ValueError(
                    f"{name}: {len(given)} given for {len(batch)} prompts; give one for all, or one for each"
                )
        texts: dict[str, OutputReader] = {}
        with self._none_left_behind(texts):
            samples = [
                self._submit(prompt, one, name, texts)
                for prompt, one, name in zip(batch, all_params, adapters, strict=True)
            ]
            outputs = self._run(texts, use_tqdm)
        return [
            output
            for sample_ids, one in zip(samples, all_params, strict=True)
            for output in chosen_samples([outputs[request_id] for request_id in sample_ids], one)
        ]

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers one conversation, or a list of them, through the model's chat template; see `generate`."""
        is_one = bool(messages) and isinstance(messages[0], dict)
        conversations = [messages] if is_one else messages
        chats = [Chat(conversation) for conversation in conversations]  # type: ignore[arg-type]
        return self.generate(chats, params, adapter=adapter, use_tqdm=use_tqdm)

    def embed(
        self,
        prompts: str | Sequence[PoolingInput],
        *,
        dimensions: int | None = None,
        adapter: str | None = None,
        use_tqdm: bool = True,
    ) -> FloatArray:
        """[number of prompts, dimensions] float32: a vector for each text, or list of token ids.

        Raises:
            ValueError: the model makes no vectors, or none of so many `dimensions`, or a prompt is too long.
        """
        self._frontend.require(Task.EMBED)
        batch = [prompts] if isinstance(prompts, str) else list(prompts)
        return self._pooled(batch, dimensions, adapter, use_tqdm)

    def score(self, query: str, documents: Sequence[str], *, use_tqdm: bool = True) -> FloatArray:
        """[number of documents] float32: a cross-encoder's score of the query with each; errors as `embed`."""
        self._frontend.require(Task.SCORE)
        return self._pooled([Pair(query, document) for document in documents], None, None, use_tqdm)[:, 0]

    def _pooled(
        self, batch: Sequence[PoolingInput], dimensions: int | None, adapter: str | None, use_tqdm: bool
    ) -> FloatArray:
        digest = None if adapter is None else self._frontend.adapter(adapter).digest
        outputs: dict[str, OutputReader] = {}
        with self._none_left_behind(outputs):
            for given in batch:
                encoded = self._pooling_inputs.encode(given)
                request_id = str(next(self._request_numbers))
                request = self._pooling_inputs.request(
                    encoded, request_id=request_id, dimensions=dimensions, adapter_digest=digest
                )
                outputs[request_id] = PooledOutput(request)
                self._engine.submit(request)
            done = self._run(outputs, use_tqdm)
        vectors = [_vector(done[request_id]) for request_id in outputs]
        return np.stack(vectors) if vectors else np.empty((0, dimensions or 0), dtype=np.float32)

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Serves the PEFT adapter in `folder` as `name` from now on. Raises ValueError if that is impossible."""
        manifest = self._frontend.read_adapter(folder)
        self._engine.register_adapter(manifest)
        self._forget(self._frontend.name_adapter(name, manifest))

    def unload_adapter(self, name: str) -> None:
        self._forget(self._frontend.forget_adapter(name))

    def stats(self) -> SchedulerStats:
        return self._engine.stats()

    def close(self) -> None:
        self._engine.close()

    def _forget(self, digest: str | None) -> None:
        if digest is not None:
            self._engine.remove_adapter(digest)

    @contextmanager
    def _none_left_behind(self, requests: Iterable[str]) -> Iterator[None]:
        """Whatever goes wrong inside, Ctrl-C too, ends the `requests` that are there by then: the next call finds none
        in the engine that it does not know."""
        try:
            yield
        except BaseException:
            for request_id in requests:
                self._engine.abort(request_id)
            raise

    def _submit(
        self, prompt: Prompt, params: SamplingParams, adapter: str | None, texts: dict[str, OutputReader]
    ) -> list[str]:
        """The ids of the prompt's samples, each of which is put into `texts` before the engine has it."""
        request_id = str(next(self._request_numbers))
        token_ids = self._frontend.encode(prompt, params.truncate_prompt_tokens)
        request = self._frontend.request(token_ids, params, request_id=request_id, adapter=adapter)
        if params.grammar is not None:
            self._engine.use_vocabulary(self._frontend.tokenizer.visible_tokens)
        samples = samples_of(request)
        for sample in samples:
            texts[sample.request_id] = self._frontend.output_text(sample, prompt)
            self._engine.submit(sample)
        return [sample.request_id for sample in samples]

    def _run(self, texts: Mapping[str, OutputReader], use_tqdm: bool) -> dict[str, RequestOutput]:
        outputs: dict[str, RequestOutput] = {}
        with tqdm(total=len(texts), desc="Requests", unit="req", disable=not use_tqdm) as bar:
            self._step_until_done(texts, outputs, bar.update)
        return outputs

    def _step_until_done(
        self,
        texts: Mapping[str, OutputReader],
        outputs: dict[str, RequestOutput],
        count_finished: Callable[[int], object],
    ) -> None:
        while self._engine.has_work:
            deltas = self._engine.step()
            for _, error in self._engine.take_refusals():
                raise error
            for delta in deltas:
                output = texts[delta.request_id].apply(delta)
                if output is None:
                    continue
                before = outputs.get(delta.request_id)
                outputs[delta.request_id] = output if before is None else before.followed_by(output)
                if output.finish_reason is not None:
                    count_finished(1)
                    # A stop string is found here, before the engine knows of it; after any other end this is a no-op.
                    self._engine.abort(delta.request_id)


def _vector(output: RequestOutput) -> FloatArray:
    if output.pooled is None:
        raise RuntimeError(output.error or "the request was ended")
    return np.frombuffer(output.pooled, dtype=np.float32)
