"""The text side of the engine: what a user asks for becomes an EngineRequest, or an error that says what is wrong.

It needs no device and shares no state with the engine, so it runs in the server's process, beside the event loop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from descant_engine.adapters.files import read_adapter
from descant_engine.adapters.manifest import AdapterManifest
from descant_engine.config import ResolvedConfig
from descant_engine.outputs import OutputText
from descant_engine.pooling import Task, UnsupportedTask
from descant_engine.request import NOBODY, EngineRequest, Owner
from descant_engine.sampling_params import SamplingParams
from descant_engine.text.chat_template import ChatMessage, num_characters, render_chat
from descant_engine.text.tokenizer import TextTooLong, Tokenizer, TokenizerError


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages for the model's chat template."""

    messages: Sequence[ChatMessage]
    add_generation_prompt: bool = True
    """Ends the prompt with the opening of the assistant's turn."""
    continue_final_message: bool = False
    """Leaves the last message open, for the output to go on with; not together with `add_generation_prompt`."""
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    """Variables of the template's own, as Qwen 3's `enable_thinking`."""
    tools: Sequence[Mapping[str, Any]] = ()
    """What the model may call, in OpenAI's form."""
    add_special_tokens: bool = False
    """Puts the tokenizer's own special tokens around the template's text."""


@dataclass(frozen=True, slots=True)
class Text:
    """Text to go on with, where a plain str does not say enough."""

    text: str
    add_special_tokens: bool = True
    """Puts in front what the model wants at a text's start."""


Prompt = str | Text | Sequence[int] | Chat
"""Text to go on with, its token ids, or a chat."""

MAX_CUT_CHARACTERS = 1 << 20
"""About a second of a processor."""
CUT_CHARACTERS_PER_TOKEN = 16
"""Of the context, where that is more; the tokens of ordinary text have about four."""


class PromptTooLong(ValueError):
    """The prompt leaves no room for a single output token."""

    def __init__(self, num_prompt_tokens: int, max_model_len: int, *, at_least: bool = False) -> None:
        """`at_least`: the prompt is so long that its tokens were estimated, from below, and not counted."""
        super().__init__(
            f"the prompt has {'at least ' if at_least else ''}{num_prompt_tokens} tokens, but this model's context "
            f"holds {max_model_len} and at least one must be left for the output; shorten the prompt"
        )


class TooManyCharacters(PromptTooLong):
    """A text of which only a part is read must be encoded whole, since where a token begins depends on the text before
    it. That is not done for a text of any length."""

    def __init__(self, num_characters: int, max_characters: int, max_model_len: int) -> None:
        ValueError.__init__(
            self,
            f"the text has {num_characters} characters, but at most {max_characters} are encoded, and cut then, for "
            f"this model's context of {max_model_len} tokens; shorten it",
        )


def check_cut_length(num_characters: int, max_model_len: int) -> None:
    """Raises TooManyCharacters."""
    max_characters = max(MAX_CUT_CHARACTERS, CUT_CHARACTERS_PER_TOKEN * max_model_len)
    if num_characters > max_characters:
        raise TooManyCharacters(num_characters, max_characters, max_model_len)


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
            TokenizerError: it cannot be loaded, or cannot write what the model generates, or the draft model has
                another one.
        """
        self.config = config
        self.tokenizer = tokenizer or Tokenizer.load(config.user.tokenizer or config.user.model)
        if Task.GENERATE in config.tasks and not self.tokenizer.can_write:
            raise TokenizerError("WordPiece tokens do not keep a text's spaces: this tokenizer is for encoders only")
        if config.user.speculative_config is not None and config.user.speculative_config.model is not None:
            _check_draft_vocabulary(self.tokenizer, config.user.speculative_config.model)
        self._adapters: dict[str, AdapterManifest] = {}

    def require(self, task: Task) -> None:
        """Raises UnsupportedTask."""
        if task not in self.config.tasks:
            raise UnsupportedTask(task, self.config.tasks)

    # Prompts

    def encode(self, prompt: Prompt, keep_last: int | None = None) -> tuple[int, ...]:
        """The prompt's token ids, only the last `keep_last` of them unless that is None. Takes about a second for a
        million characters, without the interpreter lock.

        Raises:
            PromptTooLong, InvalidPrompt, ChatTemplateError, TextNotUnicode: the prompt is at fault.
            TooManyCharacters: it is too long even to be cut.
        """
        max_tokens = self.config.max_model_len - 1
        try:
            token_ids = self._encode(prompt, is_cut=keep_last is not None)
        except TextTooLong as error:
            raise PromptTooLong(error.min_tokens, self.config.max_model_len, at_least=True) from None
        if keep_last is not None:
            token_ids = token_ids[-keep_last:]
        if len(token_ids) > max_tokens:
            raise PromptTooLong(len(token_ids), self.config.max_model_len)
        self._check_token_ids(token_ids)
        return token_ids

    def _encode(self, prompt: Prompt, *, is_cut: bool) -> tuple[int, ...]:
        """Raises TextTooLong for a text that is certain to have too many tokens, before it is encoded."""
        match prompt:
            case str():
                text = Text(prompt)
            case Text():
                text = prompt
            case Chat():
                text = self._render(prompt, is_cut=is_cut)
            case _:
                return tuple(prompt)
        self._check_length(len(text.text), is_cut=is_cut)
        return tuple(self.tokenizer.encode(text.text, add_special_tokens=text.add_special_tokens))

    def _check_length(self, num_characters: int, *, is_cut: bool) -> None:
        if is_cut:
            check_cut_length(num_characters, self.config.max_model_len)
        else:
            self.tokenizer.check_length(num_characters, self.config.max_model_len - 1)

    def _render(self, chat: Chat, *, is_cut: bool) -> Text:
        self._check_length(num_characters(chat.messages), is_cut=is_cut)
        text = render_chat(
            self.tokenizer,
            chat.messages,
            add_generation_prompt=chat.add_generation_prompt,
            continue_final_message=chat.continue_final_message,
            template_kwargs=chat.template_kwargs,
            tools=chat.tools,
        )
        return Text(text, add_special_tokens=chat.add_special_tokens)

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
        owner: Owner = NOBODY,
    ) -> EngineRequest:
        """A request for the engine, from what `encode` gave. `adapter` is a registered name, None the base model.

        Raises:
            UnknownModel: no adapter of that name.
            InvalidParams: a token that the model does not have, or too many tokens in a bad word.
        """
        self._check_param_tokens(params)
        return EngineRequest(
            request_id=request_id,
            prompt_token_ids=prompt_token_ids,
            params=self._with_bad_words(params),
            adapter_digest=None if adapter is None else self.adapter(adapter).digest,
            tenant=owner.tenant,
            tenant_salt=owner.tenant_salt,
            priority=owner.priority,
        )

    def _check_param_tokens(self, params: SamplingParams) -> None:
        vocab_size = self.config.shape.vocab_size
        for name, token_ids in (
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", params.logit_bias),
            ("allowed_token_ids", params.allowed_token_ids or ()),
            ("bad_token_sequences", chain.from_iterable(params.bad_token_sequences)),
        ):
            for token_id in token_ids:
                if not 0 <= token_id < vocab_size:
                    raise InvalidParams(f"{name}: {token_id} is not in the model's vocabulary of {vocab_size}")

    def _with_bad_words(self, params: SamplingParams) -> SamplingParams:
        if not params.bad_words:
            return params
        sequences = dict.fromkeys(params.bad_token_sequences)
        for word in params.bad_words:
            for text in (word, f" {word.lstrip()}"):
                sequences[tuple(self.tokenizer.encode(text, add_special_tokens=False))] = None
        try:
            return replace(params, bad_words=(), bad_token_sequences=tuple(sequences))
        except ValueError as error:
            raise InvalidParams(str(error)) from None

    def output_text(self, request: EngineRequest, prompt: Prompt) -> OutputText:
        """Where the request's token deltas become text. A chat's answer is a text of its own; any other output goes
        on where the prompt ended."""
        continues_text = not isinstance(prompt, Chat) or prompt.continue_final_message
        return OutputText(request, self.tokenizer, continues_text=continues_text)

    # Adapters

    @property
    def adapters(self) -> dict[str, AdapterManifest]:
        """A copy: name -> manifest of every registered adapter."""
        return dict(self._adapters)

    def has_adapter(self, name: str) -> bool:
        return name in self._adapters

    def adapter(self, name: str) -> AdapterManifest:
        """Raises UnknownModel."""
        try:
            return self._adapters[name]
        except KeyError:
            raise UnknownModel(name) from None

    def read_adapter(self, folder: str | Path) -> AdapterManifest:
        """What is in a PEFT folder, by its configuration and the names and shapes of its tensors.

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


def _check_draft_vocabulary(tokenizer: Tokenizer, draft_model: str) -> None:
    """Raises TokenizerError. A draft model without a tokenizer of its own is believed."""
    try:
        theirs = Tokenizer.load(draft_model).visible_tokens
    except TokenizerError:
        return
    ours = tokenizer.visible_tokens
    differing = next((i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), None)
    if differing is not None:
        raise TokenizerError(
            f"draft model {draft_model} has another vocabulary: its token {differing} is {theirs[differing]!r}, the "
            f"model's {ours[differing]!r}; both must be of one family"
        )
