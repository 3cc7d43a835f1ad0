"""What of `make gpu` can be tested without a GPU: the driver, the marshalling, the code of the benches."""

import json
import sys

import numpy as np
import pytest
import torch

import bench.__main__

from . import __main__ as driver
from .machine import _Device, assert_same


def test_dry_run_names_every_step(capsys):
    assert driver.main(["--dry-run", "--out", "/tmp/x"]) == 0
    text = capsys.readouterr().out
    names = ("configure", "build", "conformance", "ops", "runtime", "bench linear", "bench model", "memcheck")
    for name in names:
        assert f"# {name}, at most" in text
    assert "-DLOWBIT_GPU_ARCH=90a" in text and "--json /tmp/x/linear.json" in text


def test_unknown_step_is_refused(capsys):
    with pytest.raises(SystemExit):
        driver.main(["--dry-run", "--only", "benches"])
    assert "benches" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="no GPU: torch"):
        driver.main([])


def python(name: str, program: str, **more: object) -> driver.Step:
    return driver.Step(name, [sys.executable, "-c", program], more.pop("limit", 30), needs="", **more)


def test_steps_and_their_summary(tmp_path, capsys):
    steps = [
        python("good", "print('all fine')"),
        python("bad", "raise SystemExit('broken')"),
        python("slow", "import time; time.sleep(60)", limit=0.5),
        python("absent", "", missing="no such tool"),
        driver.Step("after", ["true"], 5, needs="bad"),
    ]
    assert driver.run_all(steps, tmp_path, 60, "a card") == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    states = {s["name"]: (s["state"], s["last"]) for s in summary["steps"]}
    assert states["good"] == ("passed", "all fine") and states["bad"] == ("failed", "broken")
    assert states["slow"][0] == "timed out" and states["absent"] == ("skipped", "no such tool")
    assert states["after"][0] == "skipped"
    assert "failed: bad, slow; skipped: absent, after" in capsys.readouterr().out
    assert driver.run_all(steps[:1], tmp_path, 60, "a card") == 0
    assert driver.run_all(steps[:1], tmp_path, 1, "a card") == 0  # no time left: skipped, not failed


@pytest.mark.parametrize("shape", [(7,), (5, 12), (2, 3, 4)])
def test_arrays_go_to_the_device_and_back(shape):
    array = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
    there, back = _Device(array, "cpu"), np.zeros_like(array)
    assert there.pitch == there.row_bytes == array.strides[0]
    there.fetch(back)
    assert np.array_equal(back, array)


def test_rows_keep_their_pitch():
    wide = np.arange(40, dtype=np.uint8).reshape(4, 10)
    there, back = _Device(wide[:, :7], "cpu"), np.zeros((4, 10), np.uint8)[:, :7]
    assert (there.rows, there.row_bytes, there.pitch) == (4, 7, 10)
    assert (there.memory[:, 7:] == 0xA5).all()  # poison between the rows
    there.fetch(back)
    assert np.array_equal(back, wide[:, :7])


def test_a_difference_is_found_and_a_nan_payload_is_none():
    a = np.zeros((18, 4), np.uint32)
    a[6, 1] = 0x7FC00000
    b = a.copy()
    b[6, 1] = 0x7FFFFFFF  # another NaN in a float row
    a[11, 2], b[11, 2] = 0x7E003C00, 0x7FFF3C00  # in the upper half of a pair
    assert_same("bits", a, b)
    for row, value in ((0, 1), (6, 0x3F800000), (11, 0x3C01)):
        wrong = b.copy()
        wrong[row, 3] = value
        with pytest.raises(AssertionError, match=rf"bits: 1 of 72 elements differ, first at \({row}, 3\)"):
            assert_same("bits", a, wrong)
    with pytest.raises(AssertionError, match="mma"):
        assert_same("mma", a, b)


@pytest.mark.parametrize(
    "words",
    [
        ["linear", "--shapes", "64x256", "--rows", "1,20"],
        ["fp_gemm", "--shapes", "64x256", "--rows", "1,20"],
        ["hadamard", "--sizes", "64,96", "--megabytes", "0.01"],
        ["quantize"],
        ["model", "--shape", "tiny", "--batch", "1", "3", "--context", "70", "--prefill", "20", "--methods",
         "mergequant w4a8"],
        ["layer", "--shape", "tiny", "--batch", "2", "--context", "5", "--prefill", "3", "--methods", ""],
    ],
    ids=lambda w: w[0],
)
def test_the_gpu_benches_run_on_the_cpu(words, tmp_path, capsys):
    threads, path = torch.get_num_threads(), tmp_path / "run.json"
    try:
        more = ["--device", "proxy", "--rounds", "1", "--slice", "1e-5", "--json", str(path)]
        assert bench.__main__.main([*words, *more]) == 0
    finally:
        torch.set_num_threads(threads)
    found = json.loads(path.read_text())
    assert found["points"] and all(t["median"] > 0 for p in found["points"] for t in p["times"].values())
    assert all(value > 0 for value in found["ceilings"].values())


def test_cutlass_is_found_by_its_package_or_left_out(tmp_path, monkeypatch, capsys):
    """The step builds where the headers are; the bench says in one line when its library is not there."""
    assert driver.main(["--dry-run", "--only", "bench linear"]) == 0
    text = capsys.readouterr().out
    if driver.cutlass_folder() is None:
        assert "# cutlass, at most 150 s no nvidia-cutlass" in text
    include = tmp_path / "cutlass_library/source/include/cutlass"
    include.mkdir(parents=True)
    (include / "cutlass.h").touch()
    (tmp_path / "cutlass_library/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert driver.main(["--dry-run", "--only", "bench linear"]) == 0
    text = capsys.readouterr().out
    assert f"-DLOWBIT_CUTLASS_DIR={tmp_path / 'cutlass_library/source'}" in text and "lowbit_cutlass" in text
    assert "LOWBIT_CUTLASS=" in text
