"""The engine for servers: text in, streams of text out, on an event loop that never waits.

    engine = await AsyncEngine.start(EngineConfig(model="HuggingFaceTB/SmolLM2-135M-Instruct"))
    async for output in await engine.submit("Once upon a time", SamplingParams(max_tokens=32)):
        print(output.text, end="")
    await engine.close()

The model runs in a process of its own (`engine_process`). What takes long here, encoding a long prompt or reading an
adapter's files, runs in threads and without the interpreter lock.
"""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path

from descant_engine.adapters.manifest import AdapterManifest
from descant_engine.config import EngineConfig, ResolvedConfig
from descant_engine.frontend import Frontend, InvalidParams, Prompt
from descant_engine.grammar.spec import GrammarRefused
from descant_engine.outputs import PooledOutput
from descant_engine.pooling import Task
from descant_engine.pooling_inputs import Pair, PoolingInput, PoolingInputs
from descant_engine.request import NOBODY, EngineRequest, Owner, samples_of
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.admission import QueueFull, RequestRefused
from descant_engine.scheduler.stats import SchedulerStats
from descant_engine.serving.active_requests import ActiveRequests
from descant_engine.serving.encoding import Encoding
from descant_engine.serving.engine_client import EngineClient, EngineDead
from descant_engine.serving.messages import (
    Abort,
    AdapterAnswer,
    Deltas,
    Ready,
    Refusal,
    Stats,
    Submit,
    SubmitRefused,
    ToFront,
    UseVocabulary,
)
from descant_engine.serving.request_stream import RequestFailed, RequestStream
from descant_engine.serving.served_adapters import ServedAdapters
from descant_engine.text.tokenizer import Tokenizer

VOCABULARY_SECONDS = 1.0
"""After the start, what grammars need is loaded though nobody has asked for one: about a second of a processor, and the
first request with a grammar would wait for it. An engine that ends sooner is spared that."""
REFUSALS: dict[Refusal, type[Exception]] = {
    Refusal.QUEUE_FULL: QueueFull,
    Refusal.NEVER_FITS: RequestRefused,
    Refusal.GRAMMAR: GrammarRefused,
    Refusal.FAILED: RequestFailed,
}


class EngineDraining(RuntimeError):
    """No new requests: the engine is about to close."""


class AsyncEngine:
    """Made by `start`, used on one event loop."""

    def __init__(self, client: EngineClient, frontend: Frontend, ready: Ready) -> None:
        self.num_blocks = ready.num_blocks
        """Size of the engine's pool."""
        self._client = client
        self._frontend = frontend
        self._pooling_inputs = PoolingInputs(frontend.config, frontend.tokenizer)
        self._stats = ready.stats
        self._encoding = Encoding(frontend, self._pooling_inputs)
        self._active = ActiveRequests(abort=lambda request_id: client.send(Abort(request_id)))
        self._serial_numbers = count()
        self._is_draining = False
        self._vocabulary_is_sent = False
        self._adapters = ServedAdapters(client, frontend)
        client.listen(self._on_message, self._on_death)
        self._vocabulary_timer = asyncio.get_running_loop().call_later(VOCABULARY_SECONDS, self._send_vocabulary)

    @classmethod
    async def start(cls, config: EngineConfig) -> "AsyncEngine":
        """Loads the model in a new process, and its tokenizer here meanwhile.

        Raises:
            EngineStartError: the engine's reason, for example an unsupported model or too little memory.
            TokenizerError: the tokenizer cannot be loaded.
        """
        tokenizer = asyncio.create_task(asyncio.to_thread(Tokenizer.load, config.tokenizer or config.model))
        tokenizer.add_done_callback(_retrieve)
        client, ready = await EngineClient.start(config)
        try:
            return cls(client, Frontend(ready.config, await tokenizer), ready)
        except BaseException:
            await client.close()
            raise

    # Requests

    async def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        adapter: str | None = None,
        request_id: str | None = None,
        owner: Owner = NOBODY,
    ) -> RequestStream:
        """Like `submit_samples`, for the one sample that `params` must ask for."""
        if params.num_samples != 1:
            raise InvalidParams("n and best_of must be 1 here; submit_samples takes more")
        (stream,) = await self.submit_samples(prompt, params, adapter=adapter, request_id=request_id, owner=owner)
        return stream

    async def submit_samples(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        adapter: str | None = None,
        request_id: str | None = None,
        owner: Owner = NOBODY,
    ) -> tuple[RequestStream, ...]:
        """Hands a request to the engine; each of its samples comes as a stream. `adapter` is a loaded or offered
        adapter's name, None the base model. `request_id` names the request in outputs and logs; it need not be unique.

        Raises:
            PromptTooLong, InvalidPrompt, InvalidParams, ChatTemplateError, TextNotUnicode, UnknownModel,
                UnsupportedTask: the request is at fault. All are ValueErrors.
            AdapterRefused: an offered adapter that cannot be served; the message says why.
            EngineDraining, EngineDead: nothing can be served (any more).
        """
        self._frontend.require(Task.GENERATE)
        if adapter is not None:
            await self._adapters.require(adapter)
        prompt_token_ids = await self.encode(prompt, params.truncate_prompt_tokens)
        self._check_open()
        request = self._frontend.request(
            prompt_token_ids,
            params,
            request_id=request_id or uuid.uuid4().hex,
            adapter=adapter,
            owner=owner,
        )
        return self._send(request, prompt)

    async def submit_pooling(
        self,
        given: PoolingInput,
        *,
        dimensions: int | None = None,
        keep_first: int | None = None,
        adapter: str | None = None,
        request_id: str | None = None,
        owner: Owner = NOBODY,
    ) -> RequestStream:
        """Hands in a text for its vector, or a pair for its score: the stream's one output has it as `pooled`.

        `dimensions`: only so many of the vector's components. `keep_first`: only so many tokens of the text.

        Raises:
            InputTooLong, InvalidPrompt, InvalidDimensions, TextNotUnicode, UnknownModel, UnsupportedTask: the request
                is at fault. All are ValueErrors.
            AdapterRefused, EngineDraining, EngineDead: as `submit_samples`.
        """
        self._frontend.require(Task.SCORE if isinstance(given, Pair) else Task.EMBED)
        if adapter is not None:
            await self._adapters.require(adapter)
        encoded = await self._encoding.pooling_input(given, keep_first)
        self._check_open()
        request = self._pooling_inputs.request(
            encoded,
            request_id=request_id or uuid.uuid4().hex,
            dimensions=dimensions,
            adapter_digest=None if adapter is None else self._frontend.adapter(adapter).digest,
            owner=owner,
        )
        engine_id = f"{request.request_id}/{next(self._serial_numbers)}"
        self._client.send(Submit(replace(request, request_id=engine_id)))
        return self._active.add(engine_id, PooledOutput(request))

    async def encode(self, prompt: Prompt, keep_last: int | None = None) -> tuple[int, ...]:
        """The prompt's token ids, the last `keep_last` of them unless that is None, with `submit`'s errors."""
        return await self._encoding.prompt(prompt, keep_last)

    def _send(self, request: EngineRequest, prompt: Prompt) -> tuple[RequestStream, ...]:
        if request.params.grammar is not None:
            self._send_vocabulary()
        # A client's id may come again while deltas of its first use are still on their way.
        first_id = f"{request.request_id}/{next(self._serial_numbers)}"
        streams = []
        for sample in samples_of(request):
            shares_prompt = sample.sample_of is not None
            engine_id = f"{sample.request_id}/{next(self._serial_numbers)}" if shares_prompt else first_id
            self._client.send(
                Submit(replace(sample, request_id=engine_id, sample_of=first_id if shares_prompt else None))
            )
            streams.append(self._active.add(engine_id, self._frontend.output_text(sample, prompt)))
        return tuple(streams)

    def _send_vocabulary(self) -> None:
        """Once; from then on grammars can be compiled."""
        if not self._vocabulary_is_sent and self.is_healthy and Task.GENERATE in self.config.tasks:
            self._client.send(UseVocabulary(self._frontend.tokenizer.visible_tokens))
            self._vocabulary_is_sent = True

    # What the engine sends

    def _on_message(self, message: ToFront) -> None:
        match message:
            case Deltas(deltas):
                self._active.deliver(deltas)
            case SubmitRefused(request_id, refusal, text):
                self._active.fail(request_id, REFUSALS[refusal](text))
            case AdapterAnswer():
                self._adapters.answered(message)
            case Stats(stats):
                self._stats = stats

    def _on_death(self, reason: EngineDead) -> None:
        self._active.fail_all(reason)
        self._adapters.fail_all(reason)

    # Adapters

    @property
    def adapters(self) -> dict[str, AdapterManifest]:
        """Name -> manifest of every loaded adapter."""
        return self._frontend.adapters

    @property
    def refused_adapters(self) -> Mapping[str, str]:
        """Name -> reason, of the offered adapters that turned out to be impossible to serve."""
        return self._adapters.refused

    def offer_adapters(self, folders: Mapping[str, Path]) -> None:
        """Lets each name mean the adapter in its PEFT folder, which is read when a request first names it."""
        self._adapters.offer(folders)

    async def load_adapter(self, name: str, folder: str | Path) -> AdapterManifest:
        """Checks a PEFT folder and lets `name` mean its adapter from now on; requests under way keep what they began
        with. Weights are read when the first request needs them.

        Raises:
            ValueError: not an adapter that this engine can serve exactly; the message says why. `name` is as before.
            EngineDead: nothing can be served any more.
        """
        return await self._adapters.load(name, folder)

    async def unload_adapter(self, name: str) -> None:
        """Lets `name` mean nothing; requests under way finish. Raises UnknownModel."""
        await self._adapters.unload(name)

    # State

    @property
    def config(self) -> ResolvedConfig:
        return self._frontend.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self._frontend.tokenizer

    @property
    def engine_pid(self) -> int:
        """Process id of the engine."""
        return self._client.pid

    @property
    def is_healthy(self) -> bool:
        """False once the engine process is gone; it does not come back."""
        return self._client.death is None

    @property
    def num_unfinished_requests(self) -> int:
        return len(self._active)

    def stats(self) -> SchedulerStats:
        """The engine's latest report, at most about a quarter of a second old between steps."""
        return self._stats

    async def drain(self, timeout_seconds: float) -> bool:
        """Takes no new requests, and waits up to `timeout_seconds` for the others. True if all have ended."""
        self._is_draining = True
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._active.wait_until_none()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Ends the engine process. Streams that are unfinished raise EngineDead."""
        self._is_draining = True
        self._vocabulary_timer.cancel()
        await self._client.close()
        self._encoding.close()

    def _check_open(self) -> None:
        self._client.check_alive()
        if self._is_draining:
            raise EngineDraining("the engine is about to close and takes no new requests")


def _retrieve(task: asyncio.Task[Tokenizer]) -> None:
    """Where the engine does not start, nobody else asks for the tokenizer's error."""
    if not task.cancelled():
        task.exception()
