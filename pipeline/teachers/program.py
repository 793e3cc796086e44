"""A torch.export program (.pt2) as a teacher.

Opening one is not safe: torch.export.load unpickles what the file says is a pickle (weights, constants, sample inputs,
custom objects; torch.load with weights_only=False, pickle.loads) and evaluates symbolic expressions with sympy.sympify.
Shape legend: B samples.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import WeightsError
from pipeline.weights import archive_kind, refuse_torchscript

HOW_TO_EXPORT = (
    'torch.export.export(model.eval(), (inputs,), dynamic_shapes=({0: torch.export.Dim("batch")},)), '
    "then torch.export.save"
)


class Program(nn.Module):
    """The network of a program, called with any number of samples whatever number it was exported for.

    `smallest` and `largest` are the batch sizes that it takes (`largest` None: any); a batch is cut into such pieces, and
    the last one filled with repetitions of its first sample, whose outputs are dropped.
    """

    def __init__(self, program: Any, smallest: int, largest: int | None, dtype: torch.dtype):
        super().__init__()
        self._network = program.module()
        self._smallest, self._largest, self._dtype = smallest, largest, dtype

    def train(self, mode: bool = True) -> Program:
        """A program stays in the mode that it was exported in."""
        return self

    def forward(self, inputs: Tensor) -> Any:
        """Inputs (B, ...) to what the program returns for them."""
        pieces = torch.split(inputs.to(self._dtype), self._largest or max(len(inputs), 1))
        outputs = [self._of_piece(piece) for piece in pieces]
        return torch.cat(outputs) if all(isinstance(output, Tensor) for output in outputs) else outputs[0]

    def _of_piece(self, piece: Tensor) -> Any:
        lacking = self._smallest - len(piece)
        if lacking <= 0:
            return self._network(piece)
        padding = piece[:1].expand(lacking, *piece.shape[1:])
        outputs = self._network(torch.cat([piece, padding]))
        return outputs[: len(piece)] if isinstance(outputs, Tensor) else outputs


def load_program(path: Path, sample_shape: Sequence[int], device: torch.device) -> Program:
    """Open a program that the user trusts.

    Raises WeightsError for another kind of file, and for a program that takes something else than one batch of samples
    of `sample_shape`, or was exported in training mode.
    """
    refuse_torchscript(path)
    if archive_kind(path) != "program":
        raise WeightsError(f"{path} is no torch.export program. Write one with {HOW_TO_EXPORT}.")
    try:
        with _quiet(logging.getLogger("torch.export")):  # it logs the traceback of what is raised anyway
            program = torch.export.load(path)
    except Exception as problem:  # damaged bytes fail anywhere in zip, JSON, pickle or the schema
        raise WeightsError(
            f"{path} cannot be loaded as a torch.export program ({type(problem).__name__}: {problem})."
        ) from None
    taken = _input_of(program, path)
    if tuple(taken.shape[1:]) != tuple(sample_shape) or not taken.dtype.is_floating_point:
        raise WeightsError(
            f"{path} takes {taken.dtype} inputs of shape {_plain(taken.shape)}, but the samples are (batch, "
            f"{', '.join(map(str, sample_shape))}) in float32."
        )
    _refuse_training_mode(program, path)
    smallest, largest = _batch_sizes(program, taken.shape[0], path)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    _forget_asserted_precisions(program)
    return Program(program, smallest, largest, taken.dtype)


def _forget_asserted_precisions(program: Any) -> None:
    """torch.export asserts the dtype of what is converted; under autocast that is another, and the conversion still right."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in list(module.graph.nodes):
                if node.target is torch.ops.aten._assert_tensor_metadata.default:
                    module.graph.erase_node(node)
            module.recompile()


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _input_of(program: Any, path: Path) -> Any:
    names = program.graph_signature.user_inputs
    found = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(found) != 1 or not isinstance(found[0], Tensor) or found[0].ndim < 2:
        raise WeightsError(f"{path} takes {len(names)} inputs; one batch of samples, (batch, ...), is needed.")
    return found[0]


def _batch_sizes(program: Any, size: Any, path: Path) -> tuple[int, int | None]:
    if isinstance(size, int):
        return size, size
    allowed = program.range_constraints.get(size.node.expr)
    if allowed is None:
        raise WeightsError(
            f"{path} was exported for batches of {size} samples, which cannot be filled. Export it with a batch of any size: "
            f"{HOW_TO_EXPORT}."
        )
    largest = str(allowed.upper)
    return max(1, int(allowed.lower)), int(largest) if largest.isdecimal() else None


def _refuse_training_mode(program: Any, path: Path) -> None:
    """In training mode dropout is random, and batch normalisation makes samples depend on their batch."""
    for node in program.graph.nodes:
        name = str(node.target)
        place = {"aten.dropout.default": 2, "aten.batch_norm.default": 5}.get(name)
        if place is not None and len(node.args) > place and node.args[place] is True:
            raise WeightsError(f"{path} was exported in training mode ({name}). Export it again with {HOW_TO_EXPORT}.")


def _plain(shape: Sequence[Any]) -> str:
    return f"({', '.join(str(size) for size in shape)})"
