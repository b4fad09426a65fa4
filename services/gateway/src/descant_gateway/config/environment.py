"""Reads the settings out of environment variables, and says all that is wrong with them at once."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from descant_gateway.config.secret import Secret

T = TypeVar("T")


class ConfigError(Exception):
    """The environment doesn't make a configuration. The message lists every problem, one a line."""


class EnvironmentReader:
    """Reads variables, collecting what is wrong with them instead of stopping at the first."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._problems: list[str] = []

    def value(self, name: str, default: T, parse: Callable[[str], T]) -> T:
        text = self._env.get(name, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            self._problems.append(f"{name}={text!r}: {error}")
            return default

    def secret(self, name: str, check: Callable[[str], str]) -> Secret:
        """A secret of its own variable or of the file that NAME_FILE names. Problems never quote the text."""
        try:
            return Secret(check(self._secret_text(name)))
        except ValueError as error:
            self._problems.append(f"{name}: {error}")
            return Secret("")

    def optional_secret(self, name: str, check: Callable[[str], str]) -> Secret | None:
        given = self._env.get(name, "").strip() or self._env.get(f"{name}_FILE", "").strip()
        return self.secret(name, check) if given else None

    def require(self, name: str, reason: str) -> None:
        if not self._env.get(name, "").strip():
            self._problems.append(f"{name}: missing; {reason}")

    def _secret_text(self, name: str) -> str:
        text, path = self._env.get(name, "").strip(), self._env.get(f"{name}_FILE", "").strip()
        if text and path:
            raise ValueError(f"set it or {name}_FILE, not both")
        if path:
            text = _read_secret_file(path)
        if not text:
            raise ValueError(f"missing; set it, or {name}_FILE to the path of a file that holds it")
        return text

    def raise_problems(self) -> None:
        if self._problems:
            raise ConfigError("The configuration is not usable:\n" + "\n".join(f"  {line}" for line in self._problems))


def _read_secret_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(f"cannot read the file {path}: {reason}") from None
