"""From the wire to the engine: a request becomes prompts and SamplingParams.

A field that is not read here is refused or declared harmless in `descant_wire`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from descant_engine.frontend import Prompt
from descant_engine.grammar.spec import GrammarSpec
from descant_engine.request import Owner
from descant_engine.sampling_params import SamplingParams
from descant_server.chat_model import ChatModel
from descant_server.chat_prompt import chat_prompt
from descant_server.chat_reading import REQUIRED_CALLS, Reading
from descant_server.errors import field_of
from descant_server.structured_output import Demand, demand_of
from descant_server.tools import content_or_calls, tool_demand, tools_of
from descant_wire.chat import ChatCompletionRequest
from descant_wire.completions import CompletionRequest
from descant_wire.errors import ApiError, invalid_request
from descant_wire.sampling import SamplingFields
from descant_wire.tools import NamedToolChoice, Tool

ValueT = TypeVar("ValueT")

MAX_CHOICES = 1024
"""Outputs of one call, over all its prompts."""
ALL_THAT_FITS = -1

_DEFAULTS = SamplingParams()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCall:
    """What one API call asks of the engine: `params.num_samples` outputs for each prompt."""

    prompts: Sequence[Prompt]
    prompt_field: Literal["messages", "prompt"]
    """The wire's name for the prompt, for error messages."""
    params: SamplingParams
    grammar_field: str = "response_format"
    """The wire's name for what asked for the grammar."""
    reading: Reading = field(default_factory=Reading)
    adapter: str | None
    owner: Owner
    """By a gateway's word, where there is one; see `identity`."""
    traceparent: str = ""
    """Of who sent it, if it is traced."""

    @property
    def operation(self) -> str:
        """As traces name it."""
        return "chat" if self.prompt_field == "messages" else "text_completion"


def chat_call(request: ChatCompletionRequest, model: ChatModel, max_model_len: int, adapter: str | None) -> EngineCall:
    """Raises ApiError 400 for options that are outside their range or don't go together."""
    tools = tools_of(request)
    demand = tool_demand(request, tools)
    reading = _reading(request, tools, model)
    if demand is None and (demand := demand_of(request)) is not None and tools:
        demand, reading = _free_to_call(demand, request, tools, model, reading)
    params = sampling_params(
        request, max_model_len, max_tokens=request.completion_limit, logprobs=_chat_logprobs(request)
    )
    return EngineCall(
        prompts=(chat_prompt(request.messages, request, tools),),
        prompt_field="messages",
        params=replace(
            params,
            grammar=None if demand is None else _after_reasoning(demand.grammar, reading),
            skip_special_tokens=params.skip_special_tokens and not _needs_special_tokens(reading),
        ),
        grammar_field="response_format" if demand is None else demand.field,
        reading=reading,
        adapter=adapter,
        owner=Owner(tenant_salt=_own_salt(request.cache_salt), priority=request.priority or 0),
    )


def completion_call(
    request: CompletionRequest, prompts: Sequence[Prompt], max_model_len: int, adapter: str | None
) -> EngineCall:
    """Raises ApiError 400 for options that are outside their range or don't go together."""
    params = sampling_params(
        request,
        max_model_len,
        max_tokens=1 if request.wants_prompt_only else request.completion_limit,
        logprobs=request.logprobs,
        best_of=request.best_of,
        # An echoed prompt's tokens are scored as the output's are.
        prompt_logprobs=request.logprobs if request.echo and request.prompt_logprobs is None else None,
    )
    _check_choices(request, params, len(prompts))
    demand = demand_of(request)
    return EngineCall(
        prompts=prompts,
        prompt_field="prompt",
        params=params if demand is None else replace(params, grammar=demand.grammar),
        grammar_field="response_format" if demand is None else demand.field,
        adapter=adapter,
        owner=Owner(tenant_salt=_own_salt(request.cache_salt), priority=request.priority or 0),
    )


def _check_choices(request: CompletionRequest, params: SamplingParams, num_prompts: int) -> None:
    if num_prompts * params.num_samples > MAX_CHOICES:
        raise invalid_request(
            f"`n` and `best_of`: {num_prompts} prompts of {params.num_samples} outputs are too many; at most"
            f" {MAX_CHOICES} outputs fit into one call.",
            param="n",
            code="invalid_value",
        )
    if request.stream and params.num_samples > params.n:
        raise invalid_request(
            "`best_of` can't be streamed: which outputs are the best is known at the end.", param="best_of"
        )


def _reading(request: ChatCompletionRequest, tools: list[Tool], model: ChatModel) -> Reading:
    reasoning, starts_inside = model.reasoning_of(request.chat_template_kwargs or {})
    named = request.tool_choice.function.name if isinstance(request.tool_choice, NamedToolChoice) else None
    form = REQUIRED_CALLS if request.tool_choice == "required" else model.tools
    return Reading(
        reasoning=reasoning,
        starts_in_reasoning=starts_inside,
        tools=form if tools else None,
        named_tool=named,
        is_single_call=request.parallel_tool_calls is False,
    )


def _free_to_call(
    demand: Demand, request: ChatCompletionRequest, tools: list[Tool], model: ChatModel, reading: Reading
) -> tuple[Demand, Reading]:
    """What is demanded of the content, or a call. Where no grammar can say that, the demand is all there is: no tool
    can be called then."""
    widened = content_or_calls(demand, request, tools, model)
    if widened is None:
        return demand, replace(reading, tools=None)
    return widened, replace(reading, call_names=frozenset(tool.function.name for tool in tools))


def _after_reasoning(grammar: GrammarSpec, reading: Reading) -> GrammarSpec:
    """What the model thinks is free."""
    form = reading.reasoning
    if form is None:
        return grammar
    is_inside = reading.starts_in_reasoning or form.always
    return replace(grammar, after=form.end, opening="" if is_inside else form.begin)


def _needs_special_tokens(reading: Reading) -> bool:
    return reading.named_tool is None and reading.tools is not None and reading.tools.needs_special_tokens


def _chat_logprobs(request: ChatCompletionRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise invalid_request("`top_logprobs` needs `logprobs` to be true.", param="top_logprobs")
    return None


def _own_salt(cache_salt: str | None) -> str:
    """A client's salt divides its tenant's blocks further. It can't mean a tenant's: those begin with no separator."""
    return f"\0{cache_salt}" if cache_salt else ""


def sampling_params(
    request: SamplingFields,
    max_model_len: int,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    best_of: int | None = None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """Null means the default, as it does for OpenAI. SamplingParams knows the ranges.

    The keywords are what each endpoint has its own words for; `request.prompt_logprobs` wins over the one here.

    Raises:
        ApiError: 400, a value outside its range.
    """
    try:
        return SamplingParams(
            n=_given(request.n, _DEFAULTS.n),
            best_of=best_of,
            temperature=_given(request.temperature, _DEFAULTS.temperature),
            top_p=_given(request.top_p, _DEFAULTS.top_p),
            top_k=0 if request.top_k == -1 else _given(request.top_k, _DEFAULTS.top_k),
            min_p=_given(request.min_p, _DEFAULTS.min_p),
            seed=request.seed,
            presence_penalty=_given(request.presence_penalty, _DEFAULTS.presence_penalty),
            frequency_penalty=_given(request.frequency_penalty, _DEFAULTS.frequency_penalty),
            repetition_penalty=_given(request.repetition_penalty, _DEFAULTS.repetition_penalty),
            logit_bias=_logit_bias(request.logit_bias or {}),
            allowed_token_ids=None if request.allowed_token_ids is None else tuple(request.allowed_token_ids),
            bad_words=tuple(request.bad_words or ()),
            max_tokens=max_tokens,
            min_tokens=_given(request.min_tokens, _DEFAULTS.min_tokens),
            stop=request.stop_strings,
            stop_token_ids=tuple(request.stop_token_ids or ()),
            ignore_eos=_given(request.ignore_eos, _DEFAULTS.ignore_eos),
            include_stop_str_in_output=_given(request.include_stop_str_in_output, _DEFAULTS.include_stop_str_in_output),
            skip_special_tokens=_given(request.skip_special_tokens, _DEFAULTS.skip_special_tokens),
            logprobs=logprobs,
            prompt_logprobs=_given(request.prompt_logprobs, prompt_logprobs),
            truncate_prompt_tokens=_prompt_limit(request.truncate_prompt_tokens, max_model_len, max_tokens),
        )
    except ValueError as error:
        raise _out_of_range(str(error), request) from None


def _logit_bias(bias: Mapping[str, float]) -> dict[int, float]:
    """Raises ValueError, as SamplingParams does."""
    for token_id in bias:
        if not (token_id.isascii() and token_id.isdigit() and len(token_id) <= 10):
            raise ValueError(f"logit_bias: its keys must be token ids; got {token_id[:40]!r}")
    return {int(token_id): value for token_id, value in bias.items()}


def _prompt_limit(limit: int | None, max_model_len: int, max_tokens: int | None) -> int | None:
    """-1 leaves room for the output that was asked for."""
    return limit if limit != ALL_THAT_FITS else max(1, max_model_len - (max_tokens or 1))


def _given(value: ValueT | None, default: ValueT) -> ValueT:
    return default if value is None else value


def _out_of_range(message: str, request: SamplingFields) -> ApiError:
    field = field_of(message)
    if (name := _wire_name(field, request)) != field:
        message, field = f"{name}{message.removeprefix(field)}", name
    return invalid_request(message, param=field, code="invalid_value")


def _wire_name(field: str, request: SamplingFields) -> str:
    """The name by which this request gave one of SamplingParams' fields."""
    if isinstance(request, ChatCompletionRequest):
        if field == "max_tokens" and request.max_completion_tokens is not None:
            return "max_completion_tokens"
        if field == "logprobs":
            return "top_logprobs"
    if isinstance(request, CompletionRequest) and field == "prompt_logprobs" and request.prompt_logprobs is None:
        return "logprobs"
    return field
