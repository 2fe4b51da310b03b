"""``lathe explain``: what reaches the API, and what is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from click.testing import Result

from optimizer.plan import DataRequest, Settings
from tests.cli.conftest import one_object
from tests.report.test_explain import FOUND

Lathe = Callable[..., Result]


def test_explain(lathe: Lathe, api: SimpleNamespace, tmp_path: Path) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def explain(model: str, **given: Any) -> Any:
        calls.append((model, given))
        return FOUND

    api.explain = explain
    result = lathe("explain", "a.lathe", "--data", "d.npz", "--against", "m.onnx", "--threads", "2", "--opset", "17")
    assert result.exit_code == 0 and "what to try next" in result.stdout
    model, given = calls[0]
    settings = given["settings"]
    assert model == "a.lathe" and given["against"] == "m.onnx" and isinstance(settings, Settings)
    assert settings.data == DataRequest("d.npz") and settings.threads == 2 and settings.source.opset == 17
    tree = one_object(lathe("explain", "a.lathe", "--json").stdout)
    assert tree["schema"] == "lathe.explanation/1" and tree["layers"][0]["form"] == "int8"
    assert "closest" not in lathe("explain").stderr and lathe("explain").exit_code == 2
