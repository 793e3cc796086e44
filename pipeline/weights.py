"""Weights: safetensors files, their digest, and the one place where a pickle may be converted."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.durable import write_durably
from pipeline.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

State = dict[str, "Tensor"]

PICKLE_STARTS = (b"\x80", b"PK\x03\x04")  # a pickle, and the zip archive that torch.save writes around one


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Sha256 over each tensor's name, dtype, shape and little-endian bytes, sorted by name: not of a file."""
    return _digest((name, state[name]) for name in sorted(state))


def digest_of_file(path: Path) -> str:
    """`weights_digest` of a safetensors file, one tensor in memory at a time.

    Raises WeightsError when it is missing, damaged, or a pickle, which is never opened.
    """
    from safetensors import SafetensorError, safe_open

    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            return _digest((name, file.get_tensor(name)) for name in sorted(file.keys()))
    except (SafetensorError, OSError) as problem:
        raise WeightsError(f"{path} is not a whole safetensors file: {problem}.") from None


def save_weights(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as one safetensors file, whole or not at all."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    write_durably(path, save(tensors, metadata))


def load_weights(path: Path) -> State:
    """Read a safetensors file onto the CPU.

    Raises WeightsError when it is missing, damaged, or a pickle, which is never opened.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    refuse_pickle(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as problem:
        raise WeightsError(f"{path} is not a whole safetensors file: {problem}.") from None


def load_into(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Put weights into a model. Raises WeightsError listing the names and shapes that do not fit."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wanted != given:
        names = sorted(set(wanted) | set(given))
        differing = [name for name in names if wanted.get(name) != given.get(name)]
        first = differing[0]
        raise WeightsError(
            f"{origin} does not fit the model in {len(differing)} tensors; the first is {first}: shape "
            f"{given.get(first, 'absent')} in the file, {wanted.get(first, 'absent')} in the model."
        )
    model.load_state_dict(dict(state))


def refuse_other_weights(state: Mapping[str, Tensor], digest: str, origin: str) -> None:
    """Raises WeightsError unless the weights have this digest."""
    found = weights_digest(state)
    if found != digest:
        raise WeightsError(f"{origin} has weights with digest {found}, but {digest} is asked for.")


def refuse_pickle(path: Path) -> None:
    """Raises WeightsError when a file is missing, a program or a pickle, naming what to do with each."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as problem:
        raise WeightsError(f"weights {path} cannot be read: {problem.strerror}.") from None
    is_safetensors = start[8:] == b"{"  # eight bytes of header length, which may look like anything, then JSON
    if is_safetensors:
        return
    refuse_torchscript(path)
    if archive_kind(path) == "program":
        raise WeightsError(
            f"{path} is a torch.export program, which holds its own network. Name it in teacher.weights without teacher.model "
            "(and with trusted = true, if you trust whoever made it)."
        )
    if start.startswith(PICKLE_STARTS):
        raise WeightsError(
            f"{path} is a pickle, which can run code when it is opened; weights are safetensors only. Convert it, if you "
            f"trust where it came from: softcache convert {path} {path.with_suffix('.safetensors')}"
        )


def refuse_torchscript(path: Path) -> None:
    """Raises WeightsError when a file is TorchScript, whatever it is called: it holds code."""
    if archive_kind(path) == "TorchScript":
        raise WeightsError(
            f"{path} is TorchScript, which is refused: it holds code and pickles that run when it is loaded, in a form that "
            "torch has given up. Where you have its Python class, save model.state_dict() as safetensors and name the class in "
            "teacher.model; else export it with torch.export.save to a .pt2 file and say trusted = true."
        )


def archive_kind(path: Path) -> Literal["TorchScript", "program"] | None:
    """What a zip archive of torch holds, told from the names of its members; None for anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return None
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        return "TorchScript"
    return "program" if "archive_format" in names else None


def convert_pickle(source: Path, target: Path) -> int:
    """Convert a state dict written by torch.save to safetensors; returns the number of tensors.

    The file is read with `weights_only=True`, which refuses everything but tensors and plain containers. Raises
    WeightsError when it holds anything else.
    """
    import torch

    if not source.is_file():
        raise WeightsError(f"{source}: no such file.")
    if target.suffix != ".safetensors":
        raise WeightsError(f"{target}: the file to write must end in .safetensors.")
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as problem:  # damaged bytes fail anywhere in the unpickler: KeyError, IndexError, struct.error, ...
        raise WeightsError(
            f"{source} holds more than tensors, or is damaged, and was not converted ({type(problem).__name__}). Save it "
            "again with torch.save(model.state_dict(), ...)."
        ) from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(_is_named_tensor(name, value) for name, value in loaded.items()):
        raise WeightsError(f"{source} holds no state dict of tensors; save model.state_dict() and try again.")
    save_weights(target, loaded)
    return len(loaded)


def _is_named_tensor(name: object, value: object) -> bool:
    import torch

    return isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, given in tensors:
        tensor = given.detach().cpu().contiguous()
        head = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
        digest.update(f"{head}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
