"""Which models of an earlier start have to go."""

from descant_cli.up.registration import BACKEND, _stale_names


def base(name: str, backend: str = BACKEND) -> dict[str, object]:
    return {"name": name, "parent": None, "alias_of": None, "backends": [backend]}


def adapter(name: str, parent: str) -> dict[str, object]:
    return {"name": name, "parent": parent, "alias_of": None, "backends": []}


def alias(name: str, target: str) -> dict[str, object]:
    return {"name": name, "parent": None, "alias_of": target, "backends": []}


def test_nothing_is_stale_at_the_second_start_of_the_same() -> None:
    assert list(_stale_names([base("m"), adapter("a", "m")], {"m", "a"})) == []


def test_adapter_that_is_gone_is_stale() -> None:
    assert list(_stale_names([base("m"), adapter("a", "m"), adapter("b", "m")], {"m", "a"})) == ["b"]


def test_other_model_makes_the_old_one_stale_after_its_adapters() -> None:
    rows = [base("old"), adapter("a", "old"), base("new")]
    assert list(_stale_names(rows, {"new"})) == ["a", "old"]


def test_models_of_other_backends_stay() -> None:
    rows = [base("m"), base("far", "elsewhere"), adapter("a", "far")]
    assert list(_stale_names(rows, {"m"})) == []


def test_what_an_alias_needs_stays_and_so_does_its_parent() -> None:
    rows = [base("old"), adapter("a", "old"), alias("house", "a"), base("m")]
    assert list(_stale_names(rows, {"m"})) == []
