"""One module at N parameter sets: by one batched call where `torch.func.vmap` can make it, else point after point.

Axes: N points (parameter sets), B rows of a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ...common.errors import ConfigError, PerformanceWarning
from ...common.torch_private import changes

Rows = Tensor | dict[str, Tensor]


def evaluate(module: nn.Module, stacked: dict[str, Tensor], rows: Rows, batched: bool) -> Any:
    """Row n of `rows` through `module` with row n of each parameter.

    Args:
        module: takes the rows of one point, [B, ...] or a dictionary of such, and gives a tensor or a tuple of them.
        stacked: parameters by name, [N, *shape]; buffers are the module's own.
        rows: [N, B, ...], or a dictionary of such.
        batched: whether vmap can do it, see `find_obstacle`.

    Returns:
        What the module gives, with an axis N before the others.
    """

    def one(parameters: dict[str, Tensor], rows: Rows) -> Any:
        return _call(module, parameters, rows)[0]

    if batched:
        return vmap(one, randomness="error")(stacked, rows)
    outputs = [one(*point) for point in zip(_unbind(stacked), _unbind(rows), strict=True)]
    if isinstance(outputs[0], Tensor):
        return torch.stack(outputs)
    return tuple(torch.stack(column) for column in zip(*outputs, strict=True))


def _call(module: nn.Module, state: dict[str, Tensor], rows: Rows) -> tuple[Any, dict[str, Tensor]]:
    """Outputs of `module` with other parameters and buffers, and these as they are after the call.

    `functional_call` leaves its own tensors behind in a submodule that has several names: here each place of a tensor
    is named once. Tied parameters have several places.
    """
    names: dict[int, str] = {}  # of the first place, as `named_parameters` has it
    placed: dict[str, str] = {}
    for prefix, part in module.named_modules():
        options: Any = {"prefix": prefix, "recurse": False, "remove_duplicate": False}
        for place, tensor in (*part.named_parameters(**options), *part.named_buffers(**options)):
            placed[place] = names.setdefault(id(tensor), place)
    given = {place: state[name] for place, name in placed.items() if name in state}
    outputs = functional_call(module, given, (rows,), tie_weights=False)
    return outputs, {placed[place]: tensor for place, tensor in given.items()}


def _unbind(tree: Rows) -> list[Any]:
    """The N entries of [N, ...], of a dictionary as dictionaries."""
    if isinstance(tree, Tensor):
        return list(tree.unbind())
    columns = zip(*(tensor.unbind() for tensor in tree.values()), strict=True)
    return [dict(zip(tree, values, strict=True)) for values in columns]


def convolves_on_cpu(module: nn.Module) -> bool:
    """Whether a pass for each point takes less time than one by vmap: with convolutions, on a CPU.

    vmap makes one grouped convolution of N, which torch's CPU kernels take up to 2.2 times as long for
    (``scripts/benchmark_cnn.py``). Not with buffers: N passes might change them N times.
    """
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
    convolves = any(isinstance(part, convolutions) for part in module.modules())
    return on_cpu and convolves and not list(module.buffers())


def find_obstacle(module: nn.Module, rows: Rows, name: str) -> str | None:
    """Why vmap cannot batch `module`, in torch's words; None if it can: found out by a trial at two points.

    Parameters, buffers and random numbers are afterwards as they were.

    Args:
        module: as for `evaluate`.
        rows: an example, for one point.
        name: of the network, for the messages.

    Raises:
        ConfigError: vmap cannot, and point after point would be wrong, because the module draws random numbers or
            changes buffers in its forward pass; or it keeps something else between calls.
    """
    device = next(module.parameters()).device
    with _trial(device):
        draws, changed, repeats = _call_twice(module, rows, device)
        if not (draws or changed or repeats):
            raise ConfigError(
                f"{name} gives other outputs when it is called again, so it keeps something that all points would "
                "share: let the outputs depend on observations and parameters alone"
            )
        obstacle = _find_error(module, rows)
    if obstacle is not None and draws:
        raise ConfigError(
            f"{name} draws random numbers in its forward pass, so that gradients would not be those of the network "
            "that acted: leave dropout and noise out, or freeze them in eval mode"
        )
    if obstacle is not None and changed:
        raise ConfigError(
            f"{name} changes buffers in its forward pass ({', '.join(changed)}), and all points would share "
            "them: leave such layers out, or freeze them in eval mode"
        )
    return obstacle


@contextmanager
def _trial(device: torch.device) -> Iterator[None]:
    """With gradients; random numbers are afterwards as before, and warnings are left to later calls."""
    devices = [device] if device.type == "cuda" else []
    with torch.enable_grad(), torch.random.fork_rng(devices, device_type=device.type), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _call_twice(module: nn.Module, rows: Rows, device: torch.device) -> tuple[bool, list[str], bool]:
    """Whether a module draws random numbers, which buffers it changes, and whether it gives the same outputs again."""
    originals = dict(module.named_buffers())
    buffers = {name: buffer.clone() for name, buffer in originals.items()}
    versions = {name: changes(buffer) for name, buffer in buffers.items()}
    state = {name: parameter.detach() for name, parameter in module.named_parameters()} | buffers
    numbers = _random_state(device)
    first, state = _call(module, state, rows)
    second, state = _call(module, state, rows)
    changed = [
        name.removeprefix("policy.")
        for name, buffer in buffers.items()  # batch normalisation leaves the version as it is
        if state[name] is not buffer or changes(buffer) != versions[name] or not buffer.equal(originals[name])
    ]
    # With room for kernels that add up in any order.
    repeats = all(
        a.shape == b.shape and a.allclose(b, rtol=1e-3, atol=1e-5, equal_nan=True)
        for a, b in zip(_tensors(first), _tensors(second), strict=True)
    )
    return not numbers.equal(_random_state(device)), changed, repeats


def _random_state(device: torch.device) -> Tensor:
    """State of the global random numbers that a module on the device would draw from."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return torch.cat(states)


def _find_error(module: nn.Module, rows: Rows) -> str | None:
    """The error of vmap for `module`, in one sentence; None if it can batch it."""
    try:
        _differentiate_batched(module, rows)
    except Exception as error:  # what vmap cannot do ends in errors of every kind
        return f"{type(error).__name__}: {error}".split(". ")[0].splitlines()[0]
    return None


def _differentiate_batched(module: nn.Module, rows: Rows) -> None:
    """Outputs and gradients of two points by vmap; an error if it cannot, or if a buffer would depend on the point."""
    points = {name: torch.stack(2 * [p.detach()]).requires_grad_() for name, p in module.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    pair = torch.stack([rows, rows]) if isinstance(rows, Tensor) else {k: torch.stack([v, v]) for k, v in rows.items()}

    def one(parameters: dict[str, Tensor], rows: Rows) -> tuple[Any, dict[str, Tensor]]:
        outputs, state = _call(module, parameters | buffers, rows)
        return outputs, {name: state[name] for name in buffers}

    out_dims: Any = (0, None)
    outputs, _ = vmap(one, out_dims=out_dims, randomness="error")(points, pair)
    total = torch.stack([output.sum() for output in _tensors(outputs)]).sum()
    if total.requires_grad:
        torch.autograd.grad(total, list(points.values()), allow_unused=True)


def _tensors(outputs: Any) -> Sequence[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else outputs


def warn_of_passes(name: str, num_points: int, obstacle: str | None, stacklevel: int) -> None:
    """Warn of the cost if vmap cannot batch a network and there are several points.

    Args:
        name: of the network.
        num_points: N.
        obstacle: what `find_obstacle` gave.
        stacklevel: frames from here to the caller that the warning is for.

    Warns:
        PerformanceWarning: N passes are made in place of one.
    """
    if obstacle is not None and num_points > 1:
        warnings.warn(
            f"torch.func.vmap cannot batch {name} ({obstacle}), so its points are evaluated one after the other: "
            f"{num_points} forward passes in place of one each time",
            PerformanceWarning,
            stacklevel=stacklevel,
        )
