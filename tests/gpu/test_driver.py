"""What of `make gpu` can be tested without a GPU: the driver, the marshalling, the code of the benches."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import bench.__main__
from bench import cuda_linear, cuda_model, report

from . import __main__ as driver
from . import sanitize
from .machine import _Device, assert_same


def test_dry_run_names_every_step(capsys):
    assert driver.main(["--dry-run", "--out", "/tmp/x"]) == 0
    text = capsys.readouterr().out
    names = ("configure", "build", "conformance", "ops", "runtime", "bench linear", "bench model", "memcheck")
    for name in names:
        assert f"# {name}, at most" in text
    assert "-DLOWBIT_GPU_ARCH=90a" in text and "--json /tmp/x/linear.json" in text
    assert driver.main(["--dry-run", "--only", "info,bench"]) == 0
    text = capsys.readouterr().out
    chosen = [line[2:].split(",")[0] for line in text.splitlines() if line.startswith("# ")]
    assert chosen[:4] == ["configure", "build", "info", "cutlass"] and len(chosen) == 10


@pytest.mark.parametrize("plugins", [(), ("xdist", "pytest_timeout")], ids=["alone", "plugins"])
def test_a_hang_is_named_with_and_without_plugins(plugins, monkeypatch, capsys):
    has = driver.has
    names = ("xdist", "pytest_timeout")
    monkeypatch.setattr(driver, "has", lambda name: name in plugins if name in names else has(name))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert driver.main(["--dry-run", "--only", "runtime,ops"]) == 0
    runtime, ops = (line for line in capsys.readouterr().out.splitlines() if " -m pytest " in line)
    assert (" -n 1 " in runtime) == (" -n 8 " in ops) == ("xdist" in plugins)
    for command in (runtime, ops):
        assert (" --timeout=60 --timeout-method=thread " in command) == bool(plugins)
        assert ("faulthandler_timeout=40" in command) != bool(plugins)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_lost_card_ends_the_process_and_names_the_test():
    """Without a GPU, synchronising is such an error."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/oracle/test_compare.py"]
    environment = {**os.environ, "LOWBIT_TEST_DEVICE": "cuda"}
    done = subprocess.run(command, cwd=driver.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 70 and "tests/oracle/test_compare.py::test_" in done.stderr
    assert "the card is lost: " in done.stderr


def test_the_sanitizers_list_goes_on_after_a_failure(monkeypatch, capsys):
    def run(name, args):
        if name == "broken":
            raise RuntimeError("no such kernel")
        return args

    one, two = torch.ones(2), torch.full((2,), 2.0)
    samples = [("wrong", (one,), two), ("broken", (one,), one), ("good", (one,), one)]
    monkeypatch.setattr(sanitize, "samples", lambda: iter(samples))
    monkeypatch.setattr(sanitize, "place", lambda name, args: args)
    monkeypatch.setattr(sanitize, "run", run)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert sanitize.main() == 1
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == "1 calls checked; failed: 0 wrong, 1 broken" and "2 good" in text
    samples[:2] = []
    assert sanitize.main() == 0


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


def test_the_summary_is_there_after_every_step_and_nothing_half_written(tmp_path):
    look = f"import json; print(len(json.load(open({str(tmp_path / 'summary.json')!r}))['steps']))"
    half = f"open({str(tmp_path / 'linear.json.part')!r}, 'w').write('[')"
    steps = [python("half", half), python("look", look)]
    assert driver.run_all(steps, tmp_path, 60, "a card") == 0
    assert json.loads((tmp_path / "summary.json").read_text())["steps"][1]["last"] == "1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gpu.log", "summary.json"]


def test_only_the_library_decides_whether_the_build_passed(tmp_path, monkeypatch, capsys):
    """The command itself, with another cmake and another Python."""
    assert driver.main(["--dry-run", "--only", "info"]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("sh -c "))
    script = line.removeprefix("sh -c ").replace(sys.executable, "false")
    for broken, code in (("lowbit_conformance", 0), ("lowbit", 1)):
        (tmp_path / "cmake").write_text(f'#!/bin/sh\nfor w; do [ "$w" = {broken} ] && exit 1; done; exit 0\n')
        (tmp_path / "cmake").chmod(0o755)
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        assert subprocess.run(["sh", "-c", script], env=path).returncode == code


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
    code, found = proxy_bench(tmp_path / "run.json", *words)
    assert code == 0 and not found["failed"]
    assert found["points"] and all(t["median"] > 0 for p in found["points"] for t in p["times"].values())
    assert all(value > 0 for value in found["ceilings"].values())


def proxy_bench(path, *words):
    threads = torch.get_num_threads()
    try:
        more = ["--device", "proxy", "--rounds", "1", "--slice", "1e-5", "--json", str(path)]
        code = bench.__main__.main([*words, *more])
    finally:
        torch.set_num_threads(threads)
    return code, json.loads(path.read_text())


def test_a_wrong_contender_is_written_down_and_the_others_are_timed(tmp_path, monkeypatch):
    check, seen, write = cuda_linear.Ours.check, [], report.write_json

    def wrong(self, x, y):
        if self.name == "lowbit W4A8 gemm" and len(x) == 1:
            raise AssertionError("off by up to 3")
        check(self, x, y)

    def written(path, name, env, result):
        seen.append((len(result["points"]), "unfinished" in result))
        return write(path, name, env, result)

    monkeypatch.setattr(cuda_linear.Ours, "check", wrong)
    monkeypatch.setattr(report, "write_json", written)
    code, found = proxy_bench(tmp_path / "run.json", "linear", "--shapes", "64x256", "--rows", "1,20")
    assert code == 1
    what = "linear, 64 x 256, M = 1, lowbit W4A8 gemm"
    assert found["failed"] == [{"what": what, "error": "AssertionError: off by up to 3"}]
    first, second = (p["times"] for p in found["points"])
    assert "lowbit W4A8 gemm" not in first and "lowbit W4A4 gemm" in first and "lowbit W4A8 gemm" in second
    assert seen == [(1, True), (2, True), (2, False)] and "unfinished" not in found


def test_a_bench_that_breaks_keeps_its_points(tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("no room")

    monkeypatch.setattr(cuda_model, "_prefill", broken)
    words = ["--shape", "tiny", "--batch", "2", "--context", "5", "--prefill", "3", "--methods", ""]
    code, found = proxy_bench(tmp_path / "run.json", "layer", *words)
    assert code == 1 and [p["phase"] for p in found["points"]] == ["decode"]
    assert found["failed"] == [{"what": "layer, tiny, prefill", "error": "RuntimeError: no room"}]
    monkeypatch.setattr(cuda_linear.cuda_ceiling, "measure", broken)
    code, found = proxy_bench(tmp_path / "run.json", "linear", "--shapes", "64x256", "--rows", "1")
    assert code == 1 and found["failed"][0]["what"] == "linear" and not found["points"]


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
