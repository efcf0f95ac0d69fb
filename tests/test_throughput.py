import csv
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import ROOT, rank_environment

sys.path.append(str(ROOT / "benchmarks"))  # scripts, not a package
throughput = importlib.import_module("throughput")
report = importlib.import_module("throughput_report")


def bench(*flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "throughput.py"), *flags],
        env=rank_environment(),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=[pytest.mark.mpi, pytest.mark.slow])])
def test_quick_run(tmp_path: Path, ranks: int) -> None:
    out = tmp_path / "figures.csv"
    done = bench("--quick", "--env", "HalfCheetah-v4", "--ranks", f"{ranks}", "--out", str(out),
                 "--seed", "3", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == [out]
    with out.open(newline="") as file:
        assert tuple(next(csv.reader(file))) == report.COLUMNS
    (row,) = report.read_csv(out)
    assert (row["kind"], row["environment"], row["ranks"]) == ("train", "HalfCheetah-v4", ranks)
    assert (row["network"], row["compiled"], row["seed"], row["threads"]) == ("2 x 64", 0, 3, 1)
    # Two towers of 17 x 64 + 64 x 64 and 1 or 6 outputs, their biases, and 6 logstd
    assert row["parameters"] == 2 * (18 * 64 + 65 * 64) + 65 * 1 + 65 * 6 + 6
    assert (row["steps_per_iteration"], row["updates_per_iteration"]) == (256, 2 * 256 // 64)
    assert row["train_steps_per_s_q1"] <= row["train_steps_per_s"] <= row["train_steps_per_s_q3"]
    assert 0 < row["ratio"] < 1.5
    assert 0 < row["startup_s"] < 60
    assert 50 < row["peak_mib"] < 2000
    parts = [row[f"{part}_s"] for part in report.PARTS]
    assert min(parts) >= 0
    # Each part has its own clock; between them lie only a log line and the callback.
    assert sum(parts) == pytest.approx(row["split_iteration_s"], rel=0.1)
    assert (row["communicating_s"] > 0.01 * row["split_iteration_s"]) or ranks == 1
    assert str(tmp_path) not in out.read_text()
    assert f"{row['train_steps_per_s']:,.0f} steps/s" in done.stdout
    _, details = report.render([row])
    start = f"| HalfCheetah-v4, 2 x 64, eager | {ranks} | {row['train_steps_per_s']:,.0f} |"
    assert start in details


def test_what_is_printed_is_what_the_file_has(tmp_path: Path) -> None:
    """Whole steps of 12780.52 are 12,781; of the file's 12780.5, 12,780."""
    row = report.six_digits({"train_steps_per_s": 12780.52, "ranks": 2, "environment": "x"})
    assert f"{row['train_steps_per_s']:,.0f}" == "12,780"
    report.write_csv(tmp_path / "figures.csv", [row], list(row))
    assert report.read_csv(tmp_path / "figures.csv") == [row]


def test_allreduce_and_a_peer_that_is_not_there(tmp_path: Path) -> None:
    out = tmp_path / "figures.csv"
    done = bench("--quick", "--allreduce", "--ranks", "1", "--peer", "sb3", "--peer-python",
                 str(tmp_path / "python"), "--out", str(out), cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = report.read_csv(out)
    assert [(row["kind"], row["floats"]) for row in rows] == [
        ("allreduce", floats) for floats in throughput.ALLREDUCE_FLOATS
    ]
    assert all(0 < row["allreduce_us"] < 1e6 for row in rows)
    assert "Leaving out the peer" in done.stdout
    assert rows[0]["command"].endswith("--peer sb3 --peer-python PYTHON --out CSV")


@pytest.mark.slow
def test_a_failing_rank_ends_the_benchmark_with_its_words(tmp_path: Path) -> None:
    done = bench("--quick", "--env", "HalfCheetahh-v4", "--ranks", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert "unknown environment 'HalfCheetahh-v4'; did you mean HalfCheetah-v4" in done.stderr


def test_figures_of_two_ranks() -> None:
    # 10 steps a rank. Iterations last 2 and 4 s from the first start to the last end, the blocks
    # 1, 1 and 3 s, so 20 / 2 and 20 / 4 steps/s against 20 / 1 and 20 / 2.
    first = {"train": [(0, 2), (10, 13)], "alone": [(0, 1), (5, 6), (15, 17)]}
    second = {"train": [(1, 2), (11, 14)], "alone": [(0, 0.5), (5, 5.5), (16, 18)]}
    figures = throughput.training_figures([first, second], steps=10)
    assert figures == {
        "train_steps_per_s": 7.5,
        "train_steps_per_s_q1": 6.25,
        "train_steps_per_s_q3": 8.75,
        "env_steps_per_s": 20.0,
        "ratio": (1 / 2 + 2 / 4) / 2,
    }


def test_split_is_the_mean_over_ranks_and_iterations() -> None:
    splits = [{"acting_s": 1.0, "environment_s": 5.0}, {"acting_s": 3.0, "environment_s": 0.0}]
    assert throughput.mean_split(splits) == {"acting_s": 2.0, "environment_s": 2.5}


def test_report_of_all_cases(tmp_path: Path) -> None:
    common = dict.fromkeys(report.COLUMNS, "") | {
        "seed": 0, "cores": 2, "threads": 1, "compiled": 1, "steps_per_iteration": 2000,
        "updates_per_iteration": 100, "parameters": 2000, "split_iteration_s": 2.0,
        "acting_s": 0.2, "environment_s": 1.0, "optimising_s": 0.7, "communicating_s": 0.1,
        "startup_s": 9.0, "compile_cache": "cold", "peak_mib": 321.4, "preset": "mujoco",
    }  # fmt: skip

    def case(environment: str, ranks: int, rate: float, network: str = "2 x 64") -> dict:
        rates = ("train_steps_per_s", "train_steps_per_s_q1", "train_steps_per_s_q3")
        row = common | dict.fromkeys(rates, rate) | {"env_steps_per_s": 2 * rate, "ratio": 0.5}
        identity = {"kind": "train", "environment": environment, "network": network, "ranks": ranks}
        return row | identity

    rows = [
        case("HalfCheetah-v4", 1, 10_000),
        case("HalfCheetah-v4", 2, 18_000),
        case("HalfCheetah-v4", 4, 17_100),
        case("HalfCheetah-v4", 1, 4_000, "2 x 256") | {"parameters": 150_000},
        common | {"kind": "allreduce", "ranks": 2, "floats": 2_000, "allreduce_us": 10.0},
        case("HalfCheetah-v4", 1, 10_500) | {
            "kind": "peer", "peer": "sb3 2", "peer_steps_per_s": 1_500, "speedup": 7.1,
            "speedup_min": 6.9, "speedup_max": 7.25, "rounds": 3, "peer_versions": "1 thread",
        },
    ]  # fmt: skip
    path = tmp_path / "all.csv"
    report.write_csv(path, rows)
    findings, details = report.render(report.read_csv(path))
    measured = [line.rpartition(" | ")[2] for line in findings.splitlines()[2:]]
    # over the environment (HalfCheetah's, Hopper's), over the peer (the same of HalfCheetah and
    # Pong), 2 ranks over twice 1, 4 over 2, and the peak
    assert measured == [f"{x} |" for x in ("0.5", "-", "7.1", "-", "0.9", "0.95", "321")]
    assert "10 % | 50 % | 35 % | 5 % | 9.0 cold | 321" in details
    assert "| HalfCheetah-v4 | 4 | 17,100 | 0.85 | 0.95 | 0.95 |" in details
    assert "2 x 64 (2,000 parameters) 10,000" in " ".join(details.split())
    assert "2,000 floats on 2 ranks 10.0" in details


def test_tables_replace_what_stands_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for text in ("one", "two"):
        report.fill_between_markers(path, text)
    assert path.read_text() == f"before\n{report.BEGIN}\n\ntwo\n\n{report.END}\nafter\n"
    path.write_text(f"{report.END}\n{report.BEGIN}\n")
    with pytest.raises(ValueError, match="needs the line"):
        report.fill_between_markers(path, "three")


def test_both_pages_are_of_the_csv() -> None:
    texts = report.render(report.read_csv(throughput.RESULTS))
    for page, text in zip(("README.md", "METHODS.md"), texts, strict=True):
        whole = (throughput.HERE / page).read_text(encoding="utf-8")
        assert f"{report.BEGIN}\n\n{text}\n\n{report.END}" in whole
