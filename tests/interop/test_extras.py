"""A module whose library is missing says which extra installs it."""

import importlib
import sys
import tomllib

import pytest

from jaxrnn.interop.extras import installed_by


@pytest.mark.parametrize(
    ("extra", "library"), [("equinox", "equinox"), ("flax", "flax"), ("haiku", "haiku"), ("onnx", "onnx")]
)
def test_a_library_that_is_missing(monkeypatch, extra, library, pytestconfig):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"jaxrnn.interop.{extra}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf'{library} is not .*pip install "jaxrnn\[{extra}\]"') as caught:
        importlib.import_module(f"jaxrnn.interop.{extra}")
    assert caught.value.name == library
    assert (
        extra
        in tomllib.loads((pytestconfig.rootpath / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )


def test_what_a_library_itself_lacks_is_told_as_it_is():
    with pytest.raises(ModuleNotFoundError, match="No module named 'missing_elsewhere'"), installed_by("flax", "flax"):
        import missing_elsewhere  # noqa: F401
