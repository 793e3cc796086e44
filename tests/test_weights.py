"""Weights: their digest is of content, pickles are never opened but by `convert`, damage and misfits are named."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import WeightsError
from pipeline.weights import (
    State,
    convert_pickle,
    load_into,
    load_weights,
    refuse_other_weights,
    save_weights,
    weights_digest,
)


def fixed_state() -> State:
    return {
        "head.weight": torch.tensor([[0.5, -1.0], [2.0, 0.0]]),
        "head.bias": torch.tensor([1, 2], dtype=torch.bfloat16),
        "steps": torch.tensor(7),
        "nothing": torch.zeros(0, 3),
    }


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def legacy_pickle(state: object) -> bytes:
    content = io.BytesIO()
    torch.save(state, content, _use_new_zipfile_serialization=False)
    return content.getvalue()


def zip_pickle(state: object) -> bytes:
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


FORMATS: dict[str, Callable[[object], bytes]] = {"zip": zip_pickle, "legacy": legacy_pickle, "plain": pickle.dumps}


def test_the_digest_of_fixed_weights_never_changes() -> None:
    assert weights_digest(fixed_state()) == "445c505f15f821ab802f08df2ae22a6818728eab1c53328ab417e1e0a3ad9656"


def test_the_digest_does_not_depend_on_file_names_order_or_memory_layout(tmp_path: Path) -> None:
    state = fixed_state()
    expected = weights_digest(state)
    assert weights_digest(dict(reversed(state.items()))) == expected
    strided = {**state, "head.weight": state["head.weight"].t().contiguous().t()}
    assert not strided["head.weight"].is_contiguous()
    assert weights_digest(strided) == expected
    save_weights(tmp_path / "a.safetensors", state)
    save_file(dict(reversed(state.items())), tmp_path / "b.safetensors", {"made": "elsewhere"})
    assert (tmp_path / "a.safetensors").read_bytes() != (tmp_path / "b.safetensors").read_bytes()
    assert weights_digest(load_weights(tmp_path / "a.safetensors")) == expected
    assert weights_digest(load_weights(tmp_path / "b.safetensors")) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {**state, "head.weight": state["head.weight"].double()},
        lambda state: {**state, "head.bias": state["head.bias"].half()},
        lambda state: {**state, "head.weight": state["head.weight"].reshape(4)},
        lambda state: {**state, "head.weight": state["head.weight"].reshape(1, 4)},
        lambda state: {**state, "steps": state["steps"].reshape(1)},
        lambda state: {**state, "steps": torch.tensor(8)},
        lambda state: {**state, "nothing": torch.zeros(3, 0)},
        lambda state: {**state, "head.weight": -state["head.weight"]},
        lambda state: {**state, "more": torch.zeros(0)},
        lambda state: {"other" if name == "steps" else name: tensor for name, tensor in state.items()},
        lambda state: {name: tensor for name, tensor in state.items() if name != "nothing"},
    ],
)
def test_the_digest_is_sensitive_to_name_dtype_shape_and_values(change: Callable[[State], State]) -> None:
    assert weights_digest(change(fixed_state())) != weights_digest(fixed_state())


def test_weights_are_read_back_as_they_were_saved(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", fixed_state())
    assert equal(load_weights(tmp_path / "model.safetensors"), fixed_state())
    assert list(tmp_path.iterdir()) == [tmp_path / "model.safetensors"]


def test_weights_that_share_memory_are_saved(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    save_weights(tmp_path / "model.safetensors", {"a": shared, "b": shared, "c": shared[1:]})
    assert equal(load_weights(tmp_path / "model.safetensors"), {"a": shared, "b": shared, "c": shared[1:]})


@pytest.mark.parametrize("kind", FORMATS)
def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(FORMATS[kind]({"weight": torch.zeros(2)}))
    with pytest.raises(WeightsError) as refused:
        load_weights(path)
    assert f"{path} is a pickle, which can run code" in str(refused.value)
    assert f"softcache convert {path} {tmp_path / 'model.safetensors'}" in str(refused.value)


def test_a_pickle_is_recognised_by_content_and_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(zip_pickle({"weight": torch.zeros(2)}))
    with pytest.raises(WeightsError, match="is a pickle"):
        load_weights(path)


def test_a_header_length_that_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for padding in range(200):
        save_weights(path, {"weight": torch.ones(2)}, {"padding": "x" * padding})
        if path.read_bytes().startswith(b"\x80"):
            break
    assert path.read_bytes().startswith(b"\x80")
    assert equal(load_weights(path), {"weight": torch.ones(2)})


class Malicious:
    """Leaves a marker when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str, int], None], tuple[str, int]]:
        return os.mkdir, (str(self.marker), 0o755)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_neither_loading_nor_converting_runs_the_code_of_a_malicious_pickle(tmp_path: Path, kind: str) -> None:
    marker, path = tmp_path / "was-run", tmp_path / "model.pt"
    path.write_bytes(FORMATS[kind]({"weight": torch.zeros(2), "bad": Malicious(marker)}))
    with pytest.raises(WeightsError, match="is a pickle"):
        load_weights(path)
    with pytest.raises(WeightsError, match=r"model\.pt holds more than tensors, or is damaged, and was not converted"):
        convert_pickle(path, tmp_path / "model.safetensors")
    assert not marker.exists()
    assert not (tmp_path / "model.safetensors").exists()
    pickle.loads(pickle.dumps(Malicious(marker)))
    assert marker.exists()  # so the code would have shown itself


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
def test_convert_writes_the_tensors_of_a_state_dict(tmp_path: Path, kind: str, wrap: Callable[[State], object]) -> None:
    source, target = tmp_path / "model.pt", tmp_path / "model.safetensors"
    source.write_bytes(FORMATS[kind](wrap(fixed_state())))
    assert convert_pickle(source, target) == 4
    assert equal(load_weights(target), fixed_state())


def test_convert_takes_the_parameters_of_a_real_model(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    convert_pickle(tmp_path / "model.pt", tmp_path / "model.safetensors")
    assert weights_digest(load_weights(tmp_path / "model.safetensors")) == weights_digest(model.state_dict())


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {"epoch": 3}, {0: torch.zeros(1)}, torch.zeros(2), {"a": torch.zeros(2).to_sparse()}]
)
def test_convert_refuses_what_is_no_state_dict(tmp_path: Path, content: object) -> None:
    (tmp_path / "model.pt").write_bytes(zip_pickle(content))
    with pytest.raises(WeightsError, match=r"model\.pt holds no state dict of tensors"):
        convert_pickle(tmp_path / "model.pt", tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_convert_refuses_a_file_cut_short_anywhere(tmp_path: Path, kind: str) -> None:
    whole, path = FORMATS[kind]({"weight": torch.zeros(40)}), tmp_path / "model.pt"
    for size in range(0, len(whole) - 1, 13):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=r"model\.pt holds"):
            convert_pickle(path, tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_convert_names_a_file_that_is_missing_or_is_no_pickle(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.pt: no such file"):
        convert_pickle(tmp_path / "gone.pt", tmp_path / "model.safetensors")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsError, match=r"notes\.txt holds more than tensors, or is damaged"):
        convert_pickle(tmp_path / "notes.txt", tmp_path / "model.safetensors")


def test_a_truncated_safetensors_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(path, fixed_state())
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=r"model\.safetensors is not a whole safetensors file"):
            load_weights(path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.safetensors cannot be read: No such file or directory"):
        load_weights(tmp_path / "gone.safetensors")


def test_weights_that_fit_are_put_into_the_model() -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    load_into(target, source.state_dict(), "here")
    assert torch.equal(target.weight, source.weight)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)},
            r"in 1 tensors; the first is weight: shape \(2, 4\) in the file, \(2, 3\) in the model",
        ),
        (
            {"weight": torch.zeros(2, 3)},
            r"in 1 tensors; the first is bias: shape absent in the file, \(2,\) in the model",
        ),
        (
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "extra": torch.zeros(1)},
            r"in 1 tensors; the first is extra: shape \(1,\) in the file, absent in the model",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named_with_both_shapes(state: dict[str, Tensor], message: str) -> None:
    model = nn.Linear(3, 2)
    before = weights_digest(model.state_dict())
    with pytest.raises(WeightsError, match=rf"^here does not fit the model {message}"):
        load_into(model, state, "here")
    assert weights_digest(model.state_dict()) == before


def test_other_weights_than_asked_for_are_refused_with_both_digests() -> None:
    state = fixed_state()
    refuse_other_weights(state, weights_digest(state), "here")
    with pytest.raises(
        WeightsError, match=f"here has weights with digest {weights_digest(state)}, but abc is asked for"
    ):
        refuse_other_weights(state, "abc", "here")
