"""PEFT's adapter_config.json: what it means for each linear layer, and whether we can serve exactly that.

Matching follows PEFT 0.21 (`tuners_utils.check_target_module_exists`, `utils.other.get_pattern_key`), because PEFT is
what the adapter was trained with. A field that we do not know and that is set is refused, never ignored.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import regex

MATCH_SECONDS = 0.25
"""The most that one match may take. An honest pattern takes microseconds; a bad one would run for ever."""
HARMLESS_FIELDS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
"""They describe where the adapter comes from, or matter only in training or together with a field that is refused."""

REFUSED_FIELDS: Mapping[str, str] = {
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "arrow_config": "Arrow routing",
    "fan_in_fan_out": "weights stored as (fan_in, fan_out)",
    "kasa_config": "KaSA",
    "layer_replication": "replicated layers",
    "lora_bias": "biases on lora_b",
    "megatron_config": "Megatron layers",
    "modules_to_save": "fully trained modules",
    "monteclora_config": "MonteCLoRA",
    "target_parameters": "adapters on bare parameters",
    "trainable_token_indices": "trained token embeddings",
    "use_bdlora": "block-diagonal LoRA",
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "velora_config": "VeLoRA",
}

_KNOWN_FIELDS = frozenset(
    {
        "alpha_pattern",
        "bias",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "use_rslora",
    }
)

_INITS_THAT_KEEP_THE_BASE = ("gaussian", "eva", "orthogonal", "mica")
"""The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base model's weights, and the adapter is worth nothing
on the original ones. PEFT converts them when saving with `path_initial_model_for_weight_conversion`."""

_ENDS_WITH = r"(.*\.)?({})$"
_IN_LAYER = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."
_OTHER_ADAPTABLE_MODULES = ("model.embed_tokens", "lm_head")


class AdapterRefused(ValueError):
    """We cannot serve the adapter exactly; the message names the field or tensor and the reason."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The fields that decide what a LoRA adapter computes."""

    lora_rank: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: str | tuple[str, ...]
    """A regular expression, or names and suffixes."""
    exclude_modules: str | tuple[str, ...]
    layers_to_transform: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]

    def targets(self, name: str) -> bool:
        """Whether the module of this full name, such as model.layers.0.self_attn.q_proj, is adapted."""
        if self.exclude_modules and _matches(self.exclude_modules, name):
            return False
        if isinstance(self.target_modules, str):
            is_all_linear = self.target_modules.lower() == "all-linear"
            return name not in _OTHER_ADAPTABLE_MODULES if is_all_linear else _matches(self.target_modules, name)
        if name in self.target_modules:
            return True
        return _matches(self.target_modules, name) and self._transforms_layer_of(name)

    def rank_of(self, name: str) -> int:
        return self.rank_pattern.get(_pattern_of(self.rank_pattern, name), self.lora_rank)

    def scaling_of(self, name: str) -> float:
        """alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732)."""
        alpha = self.alpha_pattern.get(_pattern_of(self.alpha_pattern, name), self.lora_alpha)
        lora_rank = self.rank_of(name)
        return alpha / math.sqrt(lora_rank) if self.use_rslora else alpha / lora_rank

    def _transforms_layer_of(self, name: str) -> bool:
        if self.layers_to_transform is None:
            return True
        for pattern in self.layers_pattern or (r".*?\.[^.]*",):
            if match := _matched(regex.match, _IN_LAYER.format(pattern), name):
                return int(match["idx"]) in self.layers_to_transform
        return False


def parse_peft_config(text: bytes) -> PeftConfig:
    """Reads adapter_config.json.

    Raises:
        AdapterRefused: not valid, or not plain LoRA; names the field and the reason.
    """
    fields = _load_json(text)
    _refuse_unsupported(fields)
    config = PeftConfig(
        lora_rank=_rank("r", fields.get("r", 8)),
        lora_alpha=_number("lora_alpha", fields.get("lora_alpha", 8)),
        use_rslora=_flag("use_rslora", fields.get("use_rslora") or False),
        rank_pattern={key: _rank(f"rank_pattern[{key!r}]", rank) for key, rank in _mapping(fields, "rank_pattern")},
        alpha_pattern={key: _number(f"alpha_pattern[{key!r}]", a) for key, a in _mapping(fields, "alpha_pattern")},
        target_modules=_names(fields, "target_modules"),
        exclude_modules=_names(fields, "exclude_modules"),
        layers_to_transform=_layers(fields.get("layers_to_transform")),
        layers_pattern=_as_tuple(_names(fields, "layers_pattern")),
    )
    _check_together(config)
    return config


def _load_json(text: bytes) -> dict[str, object]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterRefused(f"adapter_config.json is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise AdapterRefused("adapter_config.json is not a JSON object")
    return fields


def _refuse_unsupported(fields: Mapping[str, object]) -> None:
    if fields.get("peft_type") != "LORA":
        raise AdapterRefused(f"peft_type is {fields.get('peft_type')!r}; only 'LORA' is supported")
    if fields.get("bias", "none") != "none":
        raise AdapterRefused(f"bias is {fields['bias']!r}: trained biases are not supported; only 'none' is")
    init = fields.get("init_lora_weights", True)
    if not isinstance(init, bool) and init not in (None, *_INITS_THAT_KEEP_THE_BASE):
        raise AdapterRefused(
            f"init_lora_weights is {init!r}, which changes the base model's weights; save the adapter with "
            "path_initial_model_for_weight_conversion, so that it fits the original ones"
        )
    for field, value in fields.items():
        if field in _KNOWN_FIELDS or field in HARMLESS_FIELDS or not value:
            continue
        reason = REFUSED_FIELDS.get(field, "a field that this engine does not know")
        raise AdapterRefused(f"{field} is set to {_shortened(value)}: {reason}, which is not supported")


def _check_together(config: PeftConfig) -> None:
    if not config.target_modules:
        raise AdapterRefused("target_modules is empty; it must say which linear layers the adapter changes")
    if isinstance(config.target_modules, str) and (config.layers_to_transform or config.layers_pattern):
        raise AdapterRefused("layers_to_transform and layers_pattern go only with target_modules as a list")
    _check_patterns(config)
    for module in _OTHER_ADAPTABLE_MODULES:
        if config.targets(module):
            raise AdapterRefused(f"target_modules includes {module}; only q, k, v, o, gate, up and down can be adapted")


def _check_patterns(config: PeftConfig) -> None:
    expressions = [modules for modules in (config.target_modules, config.exclude_modules) if isinstance(modules, str)]
    expressions += [_ENDS_WITH.format(pattern) for pattern in (*config.rank_pattern, *config.alpha_pattern)]
    expressions += [_IN_LAYER.format(pattern) for pattern in config.layers_pattern]
    for expression in expressions:
        try:
            re.compile(expression)
            regex.compile(expression)
        except (re.error, regex.error, OverflowError, RecursionError) as error:
            raise AdapterRefused(f"{_shortened(expression)} is not a valid regular expression: {error}") from None


def _matches(modules: str | tuple[str, ...], name: str) -> bool:
    if isinstance(modules, str):
        return _matched(regex.fullmatch, modules, name) is not None
    return any(name == module or name.endswith(f".{module}") for module in modules)


def _pattern_of(patterns: Collection[str], name: str) -> str:
    """The first pattern that is the name, or its end after a dot."""
    return next((pattern for pattern in patterns if _matched(regex.match, _ENDS_WITH.format(pattern), name)), name)


def _matched(match: "Callable[..., regex.Match[str] | None]", expression: str, name: str) -> "regex.Match[str] | None":
    """`re`'s match or fullmatch, in bounded time and without the interpreter's lock: the file is not to be trusted."""
    try:
        return match(expression, name, timeout=MATCH_SECONDS, concurrent=True)
    except TimeoutError:
        raise AdapterRefused(f"{_shortened(expression)} takes too long to match {name!r}; simplify it") from None


def _names(fields: Mapping[str, object], field: str) -> str | tuple[str, ...]:
    value = fields.get(field)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    if value is None:
        return ()
    raise AdapterRefused(f"{field} must be a string or a list of strings; got {_shortened(value)}")


def _as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(names, tuple):
        return names
    return (names,) if names else ()


def _layers(value: object) -> tuple[int, ...] | None:
    layers = value if isinstance(value, list) else [value]
    if value is None or layers == []:
        return None
    if not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers):
        raise AdapterRefused(f"layers_to_transform must be integers; got {_shortened(value)}")
    return tuple(layers)


def _mapping(fields: Mapping[str, object], field: str) -> Collection[tuple[str, object]]:
    value = fields.get(field) or {}
    if not isinstance(value, dict):
        raise AdapterRefused(f"{field} must be an object; got {_shortened(value)}")
    return value.items()


def _rank(field: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise AdapterRefused(f"{field} must be a positive integer; got {_shortened(value)}")


def _number(field: str, value: object) -> float:
    # The bound keeps float() from overflowing, and float32 tables finite.
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30:
        return float(value)
    raise AdapterRefused(f"{field} must be a finite number; got {_shortened(value)}")


def _flag(field: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise AdapterRefused(f"{field} must be true or false; got {_shortened(value)}")


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
