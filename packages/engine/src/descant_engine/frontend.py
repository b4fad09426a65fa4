"""The text side of the engine: what a user asks for becomes an EngineRequest, or an error that says what is wrong.

It needs no device and shares no state with the engine, so it runs in the server's process, beside the event loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from descant_engine.adapter import AdapterManifest
from descant_engine.adapter_files import read_adapter
from descant_engine.config import ResolvedConfig
from descant_engine.outputs import OutputText
from descant_engine.request import EngineRequest
from descant_engine.sampling_params import SamplingParams
from descant_engine.text.chat_template import ChatMessage, num_characters, render_chat
from descant_engine.text.tokenizer import TextTooLong, Tokenizer


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages for the model's chat template."""

    messages: Sequence[ChatMessage]
    add_generation_prompt: bool = True
    """Ends the prompt with the opening of the assistant's turn."""


Prompt = str | Sequence[int] | Chat
"""Text to go on with, its token ids, or a chat."""


class PromptTooLong(ValueError):
    """The prompt leaves no room for a single output token."""

    def __init__(self, num_prompt_tokens: int, max_model_len: int, *, at_least: bool = False) -> None:
        """`at_least`: the prompt is so long that its tokens were estimated, from below, and not counted."""
        super().__init__(
            f"the prompt has {'at least ' if at_least else ''}{num_prompt_tokens} tokens, but this model's context "
            f"holds {max_model_len} and at least one must be left for the output; shorten the prompt"
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.max_model_len = max_model_len


class InvalidPrompt(ValueError):
    """A prompt without tokens, or with a token id that the model does not have."""


class InvalidParams(ValueError):
    """Sampling parameters that mean nothing for this model; the message names the field."""


class UnknownModel(ValueError):
    """No adapter is registered by this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no adapter {name!r} here; load it first, or use one of the listed models")
        self.name = name


class Frontend:
    """Not for several threads at once, except `encode` and `read_adapter`, which are slow and made for that."""

    def __init__(self, config: ResolvedConfig, tokenizer: Tokenizer | None = None) -> None:
        """`tokenizer` where it has been loaded already; the config's own otherwise (takes seconds).

        Raises:
            TokenizerError: it cannot be loaded.
        """
        self.config = config
        self.tokenizer = tokenizer or Tokenizer.load(config.user.tokenizer or config.user.model)
        self._adapters: dict[str, AdapterManifest] = {}

    # Prompts

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's token ids. Takes about a second for a million characters, without the interpreter lock.

        Raises:
            PromptTooLong, InvalidPrompt, ChatTemplateError, TextNotUnicode: the prompt is at fault.
        """
        max_tokens = self.config.max_model_len - 1
        try:
            token_ids = self._encode(prompt, max_tokens)
        except TextTooLong as error:
            raise PromptTooLong(error.min_tokens, self.config.max_model_len, at_least=True) from None
        if len(token_ids) > max_tokens:
            raise PromptTooLong(len(token_ids), self.config.max_model_len)
        self._check_token_ids(token_ids)
        return token_ids

    def _encode(self, prompt: Prompt, max_tokens: int) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(self.tokenizer.encode(prompt, add_special_tokens=True, max_tokens=max_tokens))
        if isinstance(prompt, Chat):
            self.tokenizer.check_length(num_characters(prompt.messages), max_tokens)
            text = render_chat(self.tokenizer, prompt.messages, add_generation_prompt=prompt.add_generation_prompt)
            return tuple(self.tokenizer.encode(text, add_special_tokens=False, max_tokens=max_tokens))
        return tuple(prompt)

    def _check_token_ids(self, token_ids: tuple[int, ...]) -> None:
        if not token_ids:
            raise InvalidPrompt("the prompt is empty; at least one token is needed to continue from")
        vocab_size = self.config.shape.vocab_size
        for token_id in (min(token_ids), max(token_ids)):
            if not 0 <= token_id < vocab_size:
                raise InvalidPrompt(f"token id {token_id} is not in the model's vocabulary of {vocab_size}")

    # Requests

    def request(
        self,
        prompt_token_ids: tuple[int, ...],
        params: SamplingParams,
        *,
        request_id: str,
        adapter: str | None = None,
        tenant_salt: str = "",
        priority: int = 0,
        arrival_time: float = 0.0,
    ) -> EngineRequest:
        """A request for the engine, from what `encode` gave. `adapter` is a registered name, None the base model.

        Raises:
            UnknownModel: no adapter of that name.
            InvalidParams: a stop token that the model does not have.
        """
        for token_id in params.stop_token_ids:
            if not 0 <= token_id < self.config.shape.vocab_size:
                raise InvalidParams(
                    f"stop_token_ids: {token_id} is not in the model's vocabulary of {self.config.shape.vocab_size}"
                )
        return EngineRequest(
            request_id=request_id,
            prompt_token_ids=prompt_token_ids,
            params=params,
            adapter_digest=None if adapter is None else self.adapter(adapter).digest,
            tenant_salt=tenant_salt,
            priority=priority,
            arrival_time=arrival_time,
        )

    def output_text(self, request: EngineRequest, prompt: Prompt) -> OutputText:
        """Where the request's token deltas become text. A chat's answer is a text of its own; any other output goes
        on where the prompt ended."""
        return OutputText(request, self.tokenizer, continues_text=not isinstance(prompt, Chat))

    # Adapters

    @property
    def adapters(self) -> dict[str, AdapterManifest]:
        """A copy: name -> manifest of every registered adapter."""
        return dict(self._adapters)

    def adapter(self, name: str) -> AdapterManifest:
        """Raises UnknownModel."""
        try:
            return self._adapters[name]
        except KeyError:
            raise UnknownModel(name) from None

    def read_adapter(self, folder: str | Path) -> AdapterManifest:
        """What is in a PEFT folder. Reads and hashes its files.

        Raises:
            ValueError: not an adapter that this model can serve exactly; the message says why.
        """
        return read_adapter(Path(folder), self.config.shape, self.config.user.max_lora_rank)

    def name_adapter(self, name: str, manifest: AdapterManifest) -> str | None:
        """Lets `name` mean this adapter, for requests from now on. Returns the digest that no name means any more, if
        there is one: the engine may forget it once its last request has ended."""
        replaced = self._adapters.get(name)
        self._adapters[name] = manifest
        return self._unnamed(replaced)

    def forget_adapter(self, name: str) -> str | None:
        """Like `name_adapter`, for a name that shall mean nothing. Raises UnknownModel."""
        removed = self.adapter(name)
        del self._adapters[name]
        return self._unnamed(removed)

    def knows_digest(self, digest: str) -> bool:
        return any(manifest.digest == digest for manifest in self._adapters.values())

    def _unnamed(self, manifest: AdapterManifest | None) -> str | None:
        return None if manifest is None or self.knows_digest(manifest.digest) else manifest.digest
