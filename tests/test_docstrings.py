"""The API reference: docstrings say what a name takes, returns and raises, in which shapes, and where it is from."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import optex_rl
from optex_rl import ConfigError
from scripts.check_site import public_names

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
ERRORS = {name for name, value in vars(optex_rl).items() if inspect.isclass(value) and issubclass(value, Exception)}
CONSTRUCTORS = {"__init__", "__post_init__", "__new__"}
ENTRIES = re.compile(r"^(Args|Attributes):\n((?:(?: .*)?\n?)*)", re.MULTILINE)
# "Arguments: see `NativeVectorEnv`", "the arguments are those of `fuse`".
ELSEWHERE = re.compile(r"[Aa]rguments(?::| are) (?:see|those of) `(\w+)`")
ARRAYS = re.compile(r"\b(Tensor|ndarray|NDArray|Array)\b")
SHAPE = re.compile(r"\[[^\]]+\]|scalar|[Ss]ee `")
# A docstring begins with what is returned, "The …"; one that begins with what is done says it elsewhere.
VERB = re.compile(r"(Begin|Construct|Do|Draw|Give|Go|Load|Make|Move|Read|Resume|Run|Start|Step|Take|Train|Use|Write)\b")
# Names with a formula or a method of others: their source is given, with its year.
CITED = (
    *("ActorCritic", "CnnPolicy", "PPO", "Reinforce", "SquashedGaussian", "TRPO"),
    *("AdaHessian", "KFAC", "NaturalGradient", "OptEx", "SAM", "Study"),
    *("interquartile_mean", "iterations_needed", "performance_profile"),
    *("matern12", "matern32", "matern52", "rbf"),
)


def documented() -> dict[str, Any]:
    """What the API reference has entries for, by name: the public names, and what its pages show besides."""
    names = dict(public_names())
    for page in REFERENCE.glob("*.md"):
        for entry in re.findall(r"^::: ([\w.]+)", page.read_text(), re.MULTILINE):
            module, _, name = entry.rpartition(".")
            value = getattr(importlib.import_module(module), name)
            if inspect.ismodule(value):
                own = {n: v for n, v in vars(value).items() if getattr(v, "__module__", "") == entry}
                names |= {f"{entry}.{n}": v for n, v in own.items() if not n.startswith("_")}
            else:
                names.setdefault(entry, value)
    return names


def methods(owner: type) -> Iterator[tuple[str, Any]]:
    """The methods and properties that a class defines and describes, as functions."""
    for name, value in vars(owner).items():
        function = getattr(value, "fget", getattr(value, "__func__", value))
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            yield name, function


NAMES = documented()
CLASSES = {n: v for n, v in NAMES.items() if inspect.isclass(v) and v.__module__.startswith("optex_rl")}
INTERFACES = [cls for cls in CLASSES.values() if getattr(cls, "_is_protocol", False) or inspect.isabstract(cls)]
CALLABLES: dict[str, Any] = {n: v for n, v in NAMES.items() if inspect.isfunction(v)}
CALLABLES |= {n: v for n, v in CLASSES.items() if v not in INTERFACES and CONSTRUCTORS & vars(v).keys()}
METHODS = {f"{n}.{method}": function for n, cls in CLASSES.items() for method, function in methods(cls)}


def doc_of(value: Any) -> str:
    return inspect.getdoc(value) or ""


def parameters(value: Any) -> list[str]:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(value).parameters
    return [n for n, p in found.items() if p.kind not in variable and n not in ("self", "cls") and n[0] != "_"]


def named(value: Any) -> set[str]:
    """The words in the names of the entries of Args, in code, and in what a docstring says to see for arguments."""
    doc = doc_of(value)
    entries = re.findall(r"^    ([\w*, ]+):", "".join(text for _, text in ENTRIES.findall(doc)), re.MULTILINE)
    words = {word for text in (*entries, *re.findall(r"`+([^`]+)`+", doc)) for word in re.findall(r"\w+", text)}
    for other in ELSEWHERE.findall(doc):
        words |= next(named(v) for n, v in NAMES.items() if n.endswith(f".{other}"))
    if dataclasses.is_dataclass(value):
        words |= {field.name for field in dataclasses.fields(value) if "help" in field.metadata}
    return words


def is_described_by_an_interface(name: str) -> bool:
    """Whether a method is one of a base class, or of an interface that the reference describes."""
    owner, _, method = name.rpartition(".")
    others = [*CLASSES[owner].__mro__[1:], *(cls for cls in INTERFACES if cls is not CLASSES[owner])]
    return any(method in vars(cls) for cls in others)


def raised(value: Any) -> set[str]:
    """The errors of ours that a function, or a class when it is called, raises itself or by a check."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    bodies = (
        [n for n in tree.body if getattr(n, "name", "") in CONSTRUCTORS] if isinstance(tree, ast.ClassDef) else [tree]
    )
    found = set()
    for node in (node for body in bodies for node in ast.walk(body)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found.add(ast.unparse(node.exc.func))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("check_"):
            found.add("ConfigError")
    return found & ERRORS


def without_result(value: Any) -> bool:
    """Whether a function returns something and its docstring does not say what."""
    returns = str(inspect.signature(value).return_annotation)
    doc = doc_of(value)
    return returns not in ("None", "Self") and VERB.match(doc) is not None and not re.search("[Rr]eturn", doc)


def without_shape(value: Any) -> bool:
    """Whether a function takes or returns arrays, and its docstring has no shape."""
    signature = inspect.signature(value)
    kinds = [signature.return_annotation, *(p.annotation for p in signature.parameters.values())]
    return any(ARRAYS.search(str(kind)) for kind in kinds) and not SHAPE.search(doc_of(value))


def shortfalls(value: Any, words: set[str]) -> list[str]:
    """What the docstring of a function, or of a class that is called, leaves out; ``words`` are those that it has."""
    found = [f"parameter {name}" for name in parameters(value) if name not in words]
    found += [f"raises {error}" for error in raised(value) if error not in doc_of(value)]
    found += ["returns"] * (not inspect.isclass(value) and without_result(value))
    return found + ["shapes"] * without_shape(value)


def test_functions_and_constructors_are_described() -> None:
    found = {name: shortfalls(value, named(value)) for name, value in CALLABLES.items()}
    assert {name: missing for name, missing in found.items() if missing} == {}


def test_methods_are_described() -> None:
    """Those of an interface are described there; a lone parameter needs no name."""
    found = {}
    for name, function in METHODS.items():
        if not is_described_by_an_interface(name):
            lone = parameters(function) if len(parameters(function)) == 1 else []
            found[name] = shortfalls(function, {*lone, *re.findall(r"\w+", doc_of(function))})
    assert {name: missing for name, missing in found.items() if missing} == {}


@pytest.mark.parametrize("name", CITED)
def test_formulas_have_a_source(name: str) -> None:
    (value,) = {v for n, v in NAMES.items() if n.rpartition(".")[2] == name}
    assert re.search(r"\b(19|20)\d\d\b", doc_of(value))


def test_what_is_left_out_is_found() -> None:
    def scale(x: Tensor, factor: float) -> Tensor:
        """Make it larger by ``factor``."""
        if factor < 0:
            raise ConfigError("below 0")
        return x * factor

    assert shortfalls(scale, named(scale)) == ["parameter x", "raises ConfigError", "returns", "shapes"]
    scale.__doc__ = """x ``[N]`` times a factor.

    Args:
        x, factor: what is multiplied.

    Raises:
        ConfigError: the factor is below 0.
    """
    assert shortfalls(scale, named(scale)) == []
    assert {"optex_rl.OptEx", "optex_rl.envs.make_vec", "optex_rl.TrainConfig"} <= CALLABLES.keys()
    assert "optex_rl.OptEx.tell" in METHODS
