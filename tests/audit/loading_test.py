import sys
import textwrap

import pytest

from spax.audit import AuditError
from spax.audit.loading import load_model

MODULE = """
    import functools
    import jax.numpy as jnp
    from spax.audit import Model
    from spax.typing import Stochastic

    print("hello from the module")

    def logits_fn(x):
        return x

    def factory():
        print("hello from the factory")
        return logits_fn

    class Net:
        def __call__(self, x, *, train=False):
            return 2 * x

    class Holder:
        net = Net()

    def drawn(x, key):
        return x

    stochastic, model = Stochastic(drawn), Model(logits_fn)
    bound = functools.partial(lambda w, x: w * x, 3)
    nets = Net
    stochastic_factory, model_factory = lambda: stochastic, lambda: model
    number, unbound = 3, lambda params, x: x
    nothing = lambda: None

    def fails():
        raise FileNotFoundError("no weights.npz\\nhere")

    def leaves():
        raise SystemExit(4)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, whose modules are forgotten at the end."""
    (tmp_path / "loaded.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "imports.py").write_text("import a_package_that_nobody_has\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit('bye')\n")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "inner.py").write_text("def logits_fn(x):\n    return 5 * x\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("loaded", "pack", "pack.inner"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("target", "factor"),
    [
        ("loaded:logits_fn", 1),
        ("loaded:factory", 1),
        ("loaded:bound", 3),
        ("loaded:nets", 2),
        ("loaded:Holder.net", 2),
        ("loaded:model", 1),
        ("loaded:model_factory", 1),
        ("pack.inner:logits_fn", 5),
    ],
)
def test_functions_objects_and_factories_of_them_are_models(folder, target, factor):
    model = load_model(target)
    assert not model.draws
    assert model.logits_fn(7) == 7 * factor


@pytest.mark.parametrize("name", ["stochastic", "stochastic_factory"])
def test_a_stochastic_model_stays_marked(folder, name):
    assert load_model(f"loaded:{name}").draws


def test_what_their_code_prints_stays_off_standard_output(folder, capsys):
    load_model("loaded:factory")
    out, err = capsys.readouterr()
    assert out == ""
    assert "hello from the module" in err
    assert "hello from the factory" in err


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("loaded", "package.module:name"),
        ("loaded:", "package.module:name"),
        (":model", "package.module:name"),
        ("./loaded.py:model", "dots for slashes and without .py"),
        ("loaded.py:model", "dots for slashes and without .py"),
        ("pack/inner:logits_fn", "dots for slashes and without .py"),
        ("nowhere:model", "there is no module 'nowhere'"),
        ("nowhere.inner:model", "there is no module 'nowhere'"),
        ("pack.outer:model", "there is no module 'pack.outer'"),
        ("imports:model", "No module named 'a_package_that_nobody_has'"),
        ("broken:model", "the module broken fails (SyntaxError"),
        ("leaving:model", "the module leaving fails (SystemExit: bye)"),
        ("loaded:nix", "the module loaded has no 'nix'"),
        ("loaded:Holder.nix", "the module loaded has no 'Holder.nix'"),
        ("loaded:number", "got int"),
        ("loaded:jnp", "got module"),
        ("loaded:nothing", "got NoneType"),
        ("loaded:unbound", "got a function of 2 arguments"),
        ("loaded:fails", "FileNotFoundError: no weights.npz here"),
        ("loaded:leaves", "the factory loaded:leaves fails (SystemExit: 4)"),
    ],
)
def test_what_cannot_be_loaded_says_why_on_one_line(folder, target, said):
    with pytest.raises(AuditError) as error:
        load_model(target)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_traceback_of_their_code_is_kept(folder):
    with pytest.raises(AuditError) as error:
        load_model("loaded:fails")
    assert isinstance(error.value.__cause__, FileNotFoundError)
