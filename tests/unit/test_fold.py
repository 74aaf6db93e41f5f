"""Folding update files into a new model file."""

import json
import os
import shutil

import pytest
import torch

from common.algorithms.fedavg import FedAvg, FedAvgM
from common.algorithms.median import Median
from common.algorithms.multi_krum import MultiKrum
from common.algorithms.norm_bounding import NormBounding
from common.algorithms.scaffold import Scaffold
from common.algorithms.trimmed_mean import TrimmedMean
from common.encodings.plain import Plain
from common.tensors import WINDOW, digest_file, encode, schema_of, views
from server.aggregation.fold import DamagedUpdate, Overflow, SpooledUpdate, fold
from tests.unit.algorithms.rounds import counted, made

COUNTS = (1, 10, 100)
# Of the tensors below, those that are no counters or statistics.
TRAINED = ("w", "a", "z", "after", "scalar", "none")


def spooled(path, count):
    return SpooledUpdate(path, "ann", digest_file(path), counted(count, 1))


def folded(
    folder, model, updates, optimizer=(1.0, 0.0), momentum=None, counts=COUNTS, trained=TRAINED
):
    """Fold tensors by way of files; return the new model's tensors."""
    folder.mkdir(exist_ok=True)
    base = folder / "base.safetensors"
    base.write_bytes(encode(model))
    files = []
    for index, (update, count) in enumerate(zip(updates, counts, strict=True)):
        path = folder / f"{index}.safetensors"
        path.write_bytes(encode(update))
        files.append(spooled(path, count))
    new = folder / "new.safetensors"
    state = {"momentum": momentum} if momentum else {}
    rate, server_momentum = optimizer
    strategy = made(FedAvgM, server_lr=rate, server_momentum=server_momentum)
    fold(
        base,
        state,
        {},
        files,
        strategy,
        trained,
        Plain(),
        new,
        {"momentum": folder / "momentum.safetensors"},
    )
    return views(memoryview(bytearray(new.read_bytes())))


def three(*values, dtype=torch.float32):
    return [{"w": torch.tensor(value, dtype=dtype)} for value in values]


def random_tensors(seed, size, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(size, generator=generator).to(dtype)}


def test_clients_count_by_their_examples(tmp_path):
    new = folded(tmp_path, {"w": torch.tensor([1.0])}, three([111.0], [22.2], [1.11]))
    # 1 + (1*111 + 10*22.2 + 100*1.11) / 111
    assert new["w"].tolist() == pytest.approx([5.0], rel=1e-7)


def test_counters_take_the_plain_mean_rounded(tmp_path):
    model = {"w": torch.tensor([10, -10], dtype=torch.int64)}
    updates = three([1, -1], [2, -2], [3, -3], dtype=torch.int64)
    # (1*1 + 10*2 + 100*3) / 111 = 2.89; the server's rate and momentum play no part.
    new = folded(tmp_path, model, updates, (0.1, 0.9), trained=())
    assert new["w"].dtype is torch.int64
    assert new["w"].tolist() == [13, -13]


def test_statistics_take_the_plain_mean_whatever_the_optimizer(tmp_path):
    """A running variance that overshoots would be negative, and its root no number."""
    model, updates = {"w": torch.tensor([1.0])}, three([-0.9], [-0.9], [-0.9])
    new = folded(tmp_path, model, updates, (2.0, 0.9), trained=())
    assert new["w"].item() == pytest.approx(0.1)


ONE_LIAR = ([1.0], [2.0], [3.0], [4.0], [1e6])


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (made(Median, server_lr=9.0), 3.0),
        (made(TrimmedMean, server_lr=9.0, trim_fraction=0.2), 3.0),
        (made(MultiKrum, server_lr=9.0, num_hostile=1), 2.5),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_robust_strategy_combines_statistics_as_it_does_what_is_trained(
    tmp_path, strategy, expected, dtype
):
    """One client that lies about its examples and its statistics moves neither, either."""
    base = tmp_path / "base.safetensors"
    base.write_bytes(encode({"w": torch.zeros(2), "s": torch.zeros(1, dtype=dtype)}))
    files = []
    for index, value in enumerate(ONE_LIAR):
        path = tmp_path / f"{index}.safetensors"
        statistic = torch.tensor(value).to(dtype)
        path.write_bytes(encode({"w": torch.tensor(value * 2), "s": statistic}))
        files.append(spooled(path, 10 ** (index + 1)))
    new = tmp_path / "new.safetensors"
    fold(base, {}, {}, files, strategy, ("w",), Plain(), new, {})
    found = views(memoryview(bytearray(new.read_bytes())))["s"]
    assert found.tolist() == [
        torch.tensor(expected).round().item() if dtype is torch.int64 else expected
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_each_value_is_rounded_to_its_dtype_once(tmp_path, dtype):
    model = random_tensors(0, (5, 7), dtype)
    updates = [random_tensors(seed, (5, 7), dtype) for seed in (1, 2, 3)]
    shares = [update["w"].double() * n for update, n in zip(updates, COUNTS, strict=True)]
    expected = (model["w"].double() + sum(shares) / 111).to(dtype)
    assert torch.equal(folded(tmp_path, model, updates)["w"], expected)


def test_tensors_without_dimensions_or_values_are_kept(tmp_path):
    model = {"scalar": torch.tensor(1.0), "none": torch.zeros(0, 3)}
    update = {"scalar": torch.tensor(0.5), "none": torch.zeros(0, 3)}
    new = folded(tmp_path, model, [update], counts=[4])
    assert new["scalar"].shape == ()
    assert new["scalar"].item() == 1.5
    assert new["none"].shape == (0, 3)


def test_tensors_of_several_windows_are_whole(tmp_path):
    size = 2 * WINDOW + 3
    model = random_tensors(0, size) | {"after": torch.tensor([1.0])}
    updates = [random_tensors(s, size) | {"after": torch.tensor([1.0])} for s in (1, 2, 3)]
    shares = [update["w"].double() * n for update, n in zip(updates, COUNTS, strict=True)]
    new = folded(tmp_path, model, updates)
    assert torch.equal(new["w"], (model["w"].double() + sum(shares) / 111).float())
    assert new["after"].item() == 2.0


def test_a_model_keeps_its_names_dtypes_shapes_and_header(tmp_path):
    model = {"a": torch.ones(2, 3), "z": torch.tensor(3, dtype=torch.int64), "m": torch.ones(4)}
    zero = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    folded(tmp_path, model, [zero], counts=[1])
    new, base = tmp_path / "new.safetensors", tmp_path / "base.safetensors"
    assert schema_of(new) == schema_of(base)
    assert new.read_bytes() == base.read_bytes()


def test_the_digests_returned_are_the_files(tmp_path):
    folded(tmp_path, {"w": torch.zeros(1)}, three([1.0], [2.0], [3.0]))
    base, new = tmp_path / "base.safetensors", tmp_path / "again.safetensors"
    update = spooled(tmp_path / "0.safetensors", 1)
    assert fold(base, {}, {}, [update], made(FedAvg), TRAINED, Plain(), new, {}) == (
        digest_file(new),
        {},
        {},
        [1.0],
    )
    momentum = tmp_path / "momentum"
    found = fold(
        base, {}, {}, [update], made(FedAvgM), TRAINED, Plain(), new, {"momentum": momentum}
    )
    assert found == (digest_file(new), {"momentum": digest_file(momentum)}, {}, [1.0])


def test_the_result_depends_on_the_order_given_and_on_nothing_else(tmp_path):
    model, updates = {"w": torch.zeros(1)}, three([1e16], [1.0], [-1e16])
    # In float64, 1 is lost beside 1e16.
    assert folded(tmp_path / "a", model, updates, counts=[1, 1, 1])["w"].item() == 0.0
    reordered = [updates[0], updates[2], updates[1]]
    last = folded(tmp_path / "b", model, reordered, counts=[1, 1, 1])["w"].item()
    assert last == pytest.approx(1 / 3)


def test_names_and_times_of_the_files_do_not_matter(tmp_path):
    model, updates = random_tensors(0, 99), [random_tensors(seed, 99) for seed in (1, 2, 3)]
    folded(tmp_path / "a", model, updates)
    moved = []
    for index, (name, count) in enumerate(zip("zyx", COUNTS, strict=True)):
        path = tmp_path / name
        shutil.copy(tmp_path / "a" / f"{index}.safetensors", path)
        os.utime(path, (1000 - index, 1000 - index))
        moved.append(spooled(path, count))
    new = tmp_path / "new.safetensors"
    fold(tmp_path / "a/base.safetensors", {}, {}, moved, made(FedAvg), TRAINED, Plain(), new, {})
    assert new.read_bytes() == (tmp_path / "a/new.safetensors").read_bytes()


def test_momentum_through_files_is_that_of_torch(tmp_path):
    model = random_tensors(0, WINDOW + 5, torch.float64)
    weight = torch.nn.Parameter(model["w"].clone())
    reference = torch.optim.SGD([weight], lr=0.5, momentum=0.9)
    momentum = None
    for round_number in (1, 2, 3):
        folder = tmp_path / str(round_number)
        update = random_tensors(round_number, WINDOW + 5, torch.float64)
        weight.grad = -update["w"]
        reference.step()
        model = folded(folder, model, [update], (0.5, 0.9), momentum, counts=[7])
        momentum = folder / "momentum.safetensors"
        torch.testing.assert_close(model["w"], weight.detach(), rtol=1e-13, atol=1e-13)


def test_without_momentum_none_is_written(tmp_path):
    folded(tmp_path, {"w": torch.zeros(1)}, three([1.0], [2.0], [3.0]))
    assert not (tmp_path / "momentum.safetensors").exists()


@pytest.mark.parametrize(
    ("model", "update"),
    [
        (torch.tensor([3e38]), torch.tensor([3e38])),
        (torch.tensor([6e4], dtype=torch.float16), torch.tensor([1e4], dtype=torch.float16)),
    ],
)
def test_finite_updates_that_overflow_are_an_error_that_names_the_tensor(tmp_path, model, update):
    with pytest.raises(Overflow, match="tensor 'w' of the new model overflows"):
        folded(tmp_path, {"w": model}, [{"w": update}], counts=(1,))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8])
@pytest.mark.parametrize("counts", [(1,), (7, 11, 13)])
def test_integers_next_to_the_end_of_their_dtype_stay_within_it(tmp_path, dtype, counts):
    bounds = torch.iinfo(dtype)
    for base, end in ((1, bounds.max), (0, bounds.min)):
        model = {"w": torch.tensor([base], dtype=dtype)}
        update = {"w": torch.tensor([end - base], dtype=dtype)}
        new = folded(tmp_path, model, [update] * len(counts), counts=counts, trained=())
        # float64 has 53 bits.
        assert new["w"].item() == pytest.approx(end, rel=1e-15)


@pytest.mark.parametrize(
    "strategy", [made(MultiKrum, num_hostile=1), made(NormBounding, norm_bound=30.0)], ids=type
)
def test_what_a_strategy_measures_is_of_all_windows_and_tensors(tmp_path, strategy):
    model = random_tensors(0, WINDOW + 3) | {"after": torch.ones(5)}
    updates = [random_tensors(s, WINDOW + 3) | {"after": torch.ones(5) * s} for s in range(1, 6)]
    updates[4]["after"] += 1e6  # In the last window only.
    base, files = tmp_path / "base.safetensors", []
    base.write_bytes(encode(model))
    for index, update in enumerate(updates):
        path = tmp_path / f"{index}.safetensors"
        path.write_bytes(encode(update))
        files.append(spooled(path, 1 + index))
    new = tmp_path / "new.safetensors"
    found = fold(base, {}, {}, files, strategy, TRAINED, Plain(), new, {})
    rows = [torch.cat([update["w"], update["after"]]).double() for update in updates]
    cohort = [file.contribution for file in files]
    plan = strategy.plan(cohort, strategy.measure(rows), {})
    assert found.shares == pytest.approx(plan.shares)
    expected = torch.cat([model["w"], model["after"]]).double() + strategy.combine(rows, plan)
    values = views(memoryview(bytearray(new.read_bytes())))
    torch.testing.assert_close(torch.cat([values["w"], values["after"]]), expected.float())


def test_scaffold_keeps_its_control_variate_for_trained_tensors_only(tmp_path):
    model = {"w": torch.zeros(3), "m": torch.zeros(3)}
    base, new, control = (tmp_path / name for name in ("base", "new", "control"))
    base.write_bytes(encode(model))
    path = tmp_path / "0.safetensors"
    path.write_bytes(encode({"w": torch.ones(3), "m": torch.ones(3)}))
    file = spooled(path, 4)
    fold(
        base,
        {},
        {},
        [file],
        made(Scaffold, lr=0.1, num_clients=2),
        ("w",),
        Plain(),
        new,
        {"control": control},
    )
    kept = views(memoryview(bytearray(control.read_bytes())))
    # Half of the clients, and -1 / (1 step * 0.1).
    assert {name: tensor.tolist() for name, tensor in kept.items()} == {
        "w": [-5.0] * 3,
        "m": [0.0] * 3,
    }


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


DAMAGES = {
    "the header": lambda path: flip(path, 12),
    "the first value": lambda path: flip(path, -8 * (WINDOW + 3)),
    "the last value": lambda path: flip(path, -1),
    "a byte less": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "other bytes": lambda path: path.write_bytes(b"x"),
    "no file": lambda path: path.unlink(),
    "NaN": lambda path: path.write_bytes(path.read_bytes()[:-8] + b"\xff" * 8),
    "another update": lambda path: shutil.copy(path.with_name("0"), path),
    "another tensor": lambda path: path.write_bytes(encode({"v": torch.zeros(WINDOW + 3)})),
}


@pytest.mark.parametrize("strategy", [made(FedAvg), made(MultiKrum, num_hostile=0)], ids=type)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_update_is_an_error_that_names_its_file_and_client(tmp_path, damage, strategy):
    base, files = tmp_path / "base", []
    base.write_bytes(encode(random_tensors(9, WINDOW + 3, torch.float64)))
    for name in "012":
        (tmp_path / name).write_bytes(encode(random_tensors(int(name), WINDOW + 3, torch.float64)))
        files.append(spooled(tmp_path / name, 1))
    fold(base, {}, {}, files, strategy, TRAINED, Plain(), tmp_path / "new", {})
    DAMAGES[damage](tmp_path / "1")
    with pytest.raises(DamagedUpdate, match="/1: the update of client 'ann' is not what was acc"):
        fold(base, {}, {}, files, strategy, TRAINED, Plain(), tmp_path / "new", {})


def test_an_update_whose_tensors_lie_otherwise_than_the_models_counts_as_any_other(tmp_path):
    model = random_tensors(0, WINDOW + 3) | {"n": torch.tensor(3), "b": torch.ones(2)}
    values = random_tensors(1, WINDOW + 3) | {"n": torch.tensor(2), "b": torch.ones(2)}
    new = folded(tmp_path, model, [values], counts=[1])
    header, start, data = {"__metadata__": {"by": "hand"}}, 0, b""
    for name in ("b", "w", "n"):
        raw = values[name].numpy().tobytes()
        offsets = [start, start + len(raw)]
        dtype, shape = schema_of(tmp_path / "0.safetensors")[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        start, data = offsets[1], data + raw
    text = json.dumps(header).encode()
    path = tmp_path / "otherwise"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    base, found = tmp_path / "base.safetensors", tmp_path / "found"
    fold(base, {}, {}, [spooled(path, 1)], made(FedAvg), TRAINED, Plain(), found, {})
    for name, tensor in views(memoryview(bytearray(found.read_bytes()))).items():
        assert torch.equal(tensor, new[name])


def test_a_model_without_values_is_folded_and_checked(tmp_path):
    new = folded(tmp_path, {"none": torch.zeros(0)}, [{"none": torch.zeros(0)}], counts=[1])
    assert new["none"].shape == (0,)
