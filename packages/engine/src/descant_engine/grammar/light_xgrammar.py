"""xgrammar without what its Python files import and never use here: torch and transformers, two seconds of a processor.

Where they are loaded already they stay what they are.
"""

import sys
from contextlib import suppress
from importlib import import_module
from types import ModuleType

UNUSED = ("torch", "transformers")


class _Anything:
    """In place of a class that is named at import, in a signature or to be inherited from."""

    def __init__(self, *args: object, **options: object) -> None:
        pass


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> type[_Anything]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


def load_xgrammar() -> None:
    """Imports it, if nobody has. If it comes to need what is left out, it is imported with that."""
    if "xgrammar" in sys.modules:
        return
    absent = [name for name in UNUSED if name not in sys.modules]
    try:
        _load_without(absent)
    except Exception:  # whatever a later version does with a stand-in
        for name in [name for name in sys.modules if name.partition(".")[0] == "xgrammar"]:
            del sys.modules[name]
    finally:
        for name in absent:
            sys.modules.pop(name, None)
    import_module("xgrammar")


def _load_without(absent: list[str]) -> None:
    blocked: dict[str, ModuleType | None] = dict.fromkeys(absent)
    sys.modules.update(blocked)  # type: ignore[arg-type]  # None is how an import is made to fail
    with suppress(ImportError):  # it goes without torch if there is none
        import_module("tvm_ffi")
    sys.modules.update({name: _StandIn(name) for name in absent})
    import_module("xgrammar")
