"""Machines: loose names, quantities with units, and what is said of unknown ones."""

from __future__ import annotations

import pytest

from paceline.advisor import machines
from paceline.advisor.machines import bandwidth_bytes, choose, find, memory_bytes
from paceline.errors import UsageError


@pytest.mark.parametrize("name", ["rtx4090", "RTX 4090", "NVIDIA GeForce RTX 4090", "rtx-4090", "4090"])
def test_names_are_loose(name: str) -> None:
    assert find(name).name == "RTX 4090"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("h100", "H100 SXM"),
        ("H200", "H200"),
        ("dgx spark", "GB10 (DGX Spark)"),
        ("m4 max", "Apple M4 Max (40-core GPU)"),
    ],
)
def test_aliases(name: str, wanted: str) -> None:
    assert find(name).name == wanted


@pytest.mark.parametrize(("name", "near"), [("rtx4091", "RTX 4090"), ("H101", "H100"), ("M4 Ultra", "Apple M3 Ultra")])
def test_unknown_names_offer_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match="there is no machine") as caught:
        find(name)
    assert near in str(caught.value)


WANTED = (
    "rtx 3090, rtx 4090, rtx 5090, a100, h100, h200, b200, l40s, gb10, dgx spark, rtx pro 6000, mi300x, strix halo, m1,"
    " m1 pro, m1 max, m1 ultra, m2, m2 pro, m2 max, m2 ultra, m3, m3 pro, m3 max, m3 ultra, m4, m4 pro, m4 max, m5,"
    " m5 pro, m5 max, snapdragon, iphone 17 pro, phone"
)


@pytest.mark.parametrize("name", WANTED.split(", "))
def test_the_machines_that_people_ask_about_are_there(name: str) -> None:
    assert find(name).source


def test_a_name_like_nothing_gets_examples() -> None:
    with pytest.raises(UsageError, match="examples are RTX 4090"):
        find("??")


def test_every_name_means_one_machine_and_every_row_is_sound() -> None:
    names = [name for _, own in machines.table() for name in set(own)]
    assert len(names) == len(set(names))
    for machine, _ in machines.table():
        assert find(machine.name) is machine
        assert machine.source
        assert machine.bandwidth is not None
        assert 8e9 <= machine.memory <= 1e12
        assert 5e10 <= machine.bandwidth <= 1e13
        assert 0 < machine.usable <= 1
        assert machine.flops is None or 2e13 < machine.flops < 5e15


def test_quantities() -> None:
    assert memory_bytes("24GB") == 24e9
    assert memory_bytes("24 GiB") == 24 * 2**30
    assert bandwidth_bytes("1008GB/s") == 1008e9
    assert bandwidth_bytes("3.35 TB/s") == pytest.approx(3.35e12)


@pytest.mark.parametrize("text", ["24", "GB", "24GB/s", "24 bananas", ""])
def test_memory_needs_its_unit(text: str) -> None:
    with pytest.raises(UsageError, match="memory needs a number and its unit, as in 24GB"):
        memory_bytes(text)


@pytest.mark.parametrize("text", ["1008", "1008GB", "fast"])
def test_bandwidth_needs_its_unit(text: str) -> None:
    with pytest.raises(UsageError, match="bandwidth needs a number and its unit, as in 1008GB/s"):
        bandwidth_bytes(text)


@pytest.mark.parametrize("text", ["-24GB", "0GB"])
def test_nothing_at_or_below_zero(text: str) -> None:
    with pytest.raises(UsageError, match="above zero"):
        memory_bytes(text)


def test_figures_stand_in_for_those_of_a_name() -> None:
    found = choose("rtx4090", "48GB", None)
    assert (found.memory, found.bandwidth) == (48e9, 1008e9)
    assert "by hand" in found.source
    assert choose(None, "24GB", "1TB/s").bandwidth == 1e12
    with pytest.raises(UsageError, match="give --memory too"):
        choose(None, None, "1TB/s")


def test_a_gpu_is_known_by_the_name_its_driver_has() -> None:
    assert machines.seen("NVIDIA H100 80GB HBM3", 85e9, 84e9).bandwidth == 3.35e12
    assert machines.seen("NVIDIA A100-SXM4-40GB", 42e9, 41e9).bandwidth == 1.555e12
    assert machines.seen("NVIDIA A100-SXM4-80GB", 85e9, 84e9).bandwidth == 2.039e12
    unknown = machines.seen("NVIDIA Imaginary 9000", 20e9, 19e9)
    assert (unknown.memory, unknown.bandwidth) == (20e9, None)


def test_without_a_gpu_the_memory_of_the_cpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.available.obstacle", lambda: "no GPU")
    found = machines.detect()
    assert found.kind == "cpu"
    assert found.bandwidth is None
    assert found.memory > 1e9
