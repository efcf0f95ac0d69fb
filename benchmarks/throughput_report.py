"""What throughput.py measured, as a CSV and as tables for README.md and METHODS.md.

A row is a dict with the keys of COLUMNS; `kind` is train, peer or allreduce. A column that does not
apply to a kind is "". All numbers in the text come from the rows, except the goals.
"""

import csv
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

BEGIN = "<!-- made by throughput.py from results/throughput.csv: begin -->"
END = "<!-- made by throughput.py: end -->"

PARTS = ("acting", "environment", "optimising", "communicating")
COLUMNS = (
    "kind", "environment", "preset", "network", "parameters", "ranks", "compiled", "compile_cache",
    "iterations", "steps_per_iteration", "updates_per_iteration",
    "train_steps_per_s", "train_steps_per_s_q1", "train_steps_per_s_q3", "env_steps_per_s", "ratio",
    "startup_s", "peak_mib",
    "split_iteration_s", "acting_s", "environment_s", "optimising_s", "communicating_s",
    "peer", "peer_steps_per_s", "speedup", "speedup_min", "speedup_max", "rounds",
    "floats", "allreduce_us",
    "seed", "threads", "cores", "cpu", "machine", "load_before", "versions", "mpi", "peer_versions",
    "commit", "date", "command",
)  # fmt: skip

Row = dict[str, Any]


# ---- Files ---------------------------------------------------------------------------------------


def write_csv(path: Path, rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Write the rows, figures with six significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            cells = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(cells)


def six_digits(row: Row) -> Row:
    """Return a row as its file will have it: its figures to six significant digits."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}


def read_csv(path: Path) -> list[Row]:
    """Return the rows, with numbers as int or float."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: number(text) for key, text in row.items()} for row in csv.DictReader(file)]


def number(text: str) -> int | float | str:
    """Return a text as the number that it is, or itself."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def fill_reports(folder: Path, texts: Sequence[str], *, begin: str = BEGIN, end: str = END) -> None:
    """Write README.md's and METHODS.md's parts between the markers that both files have."""
    for name, text in zip(("README.md", "METHODS.md"), texts, strict=True):
        fill_between_markers(folder / name, text, begin=begin, end=end)


def fill_between_markers(path: Path, text: str, *, begin: str = BEGIN, end: str = END) -> None:
    """Replace what stands between `begin` and `end` in a file.

    Raises:
        ValueError: if the file does not have each of them once, in order.
    """
    content = path.read_text(encoding="utf-8")
    head, _, rest = content.partition(begin)
    _, _, tail = rest.partition(end)
    if content.count(begin) != 1 or content.count(end) != 1 or end in head:
        raise ValueError(f"{path} needs the line {begin!r} once, and after it {end!r} once")
    path.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}", encoding="utf-8")


# ---- Text ----------------------------------------------------------------------------------------


def sentence(row: Row) -> str:
    """Return one row in words."""
    ranks = f"{row['ranks']} rank{'s' if row['ranks'] > 1 else ''}"
    if row["kind"] == "allreduce":
        return f"Allreduce of {row['floats']:,} floats, {ranks}: {row['allreduce_us']:,.1f} us"
    text = f"{case(row)}, {ranks}: {row['train_steps_per_s']:,.0f} steps/s"
    if row["kind"] == "peer":
        return (
            f"{text}, {row['peer']} {row['peer_steps_per_s']:,.0f}, "
            f"{row['speedup']:.2f} times ({row['speedup_min']:.2f} to {row['speedup_max']:.2f})"
        )
    split = ", ".join(f"{part} {share(row, part)}" for part in PARTS)
    return (
        f"{text}, environment alone {row['env_steps_per_s']:,.0f}, ratio {row['ratio']:.2f}; "
        f"{split}; start-up {row['startup_s']:.1f} s, peak {row['peak_mib']:.0f} MiB"
    )


def case(row: Row) -> str:
    """Return environment and network, which is compiled unless it says otherwise."""
    return f"{row['environment']}, {row['network']}{'' if row['compiled'] else ', eager'}"


def share(row: Row, part: str) -> str:
    """Return a part of an iteration in percent."""
    return f"{100 * row[f'{part}_s'] / row['split_iteration_s']:.0f} %"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, its first column left-aligned and the others right-aligned."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def wrapped(text: str, *, start: str = "") -> str:
    """Return a paragraph in lines of at most 100 characters; `start` precedes the first."""
    return textwrap.fill(
        text, 100, initial_indent=start, subsequent_indent=" " * len(start),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def render(rows: Sequence[Row]) -> tuple[str, str]:
    """Return README.md's and METHODS.md's parts that are made from the rows of one run."""
    train, peers, allreduce = (
        [row for row in rows if row["kind"] == kind] for kind in ("train", "peer", "allreduce")
    )
    first = rows[0]
    measured = (
        f"Measured by `{first['command']}` on {first['date']}, commit {first['commit']}, seed "
        f"{first['seed']}, on {first['cpu']}, {first['cores']} cores, {first['machine']}, load "
        f"before the run {first['load_before']}, threads of a rank: {first['threads']}. "
        f"{first['versions']}; {first['mpi']}."
    )
    paragraphs = [
        wrapped(measured),
        "### Training and the environment alone",
        training_table(train),
        "### Compared with a peer",
        peer_table(peers),
        "### How the cost grows",
        *growth(train, allreduce),
    ]
    return goals_table(train, peers), "\n\n".join(paragraphs)


def find(rows: Sequence[Row], environment: str, ranks: int = 1) -> Row:
    """Return the first row of a case, whose network is the preset's; {} if there is none."""
    matching = (r for r in rows if r["environment"] == environment and r["ranks"] == ranks)
    return next(matching, {})


def goals_table(train: Sequence[Row], peers: Sequence[Row]) -> str:
    """Return the table of what was to be reached."""
    cheetah, hopper, pong = "HalfCheetah-v4", "Hopper-v4", "PongNoFrameskip-v4"
    rates = {n: find(train, cheetah, n).get("train_steps_per_s", math.nan) for n in (1, 2, 4)}
    mlp_peaks = [row["peak_mib"] for row in train if row["environment"] in (cheetah, hopper)]
    lines = [
        (f"{cheetah}, 1 rank: training over environment alone", "at least 0.40",
         find(train, cheetah).get("ratio", math.nan)),
        (f"{hopper}, 1 rank: the same", "at least 0.60",
         find(train, hopper).get("ratio", math.nan)),
        (f"{cheetah}, 1 rank: over the peer's", "at least 7",
         find(peers, cheetah).get("speedup", math.nan)),
        (f"{pong}, 1 rank: over the peer's", "at least 2.5",
         find(peers, pong).get("speedup", math.nan)),
        (f"{cheetah}: 2 ranks over twice one rank", "at least 0.90", rates[2] / rates[1] / 2),
        (f"{cheetah}: 4 ranks over 2 ranks", "at least 0.90", rates[4] / rates[2]),
        ("peak memory of a rank, MLP, MiB", "at most 600", max(mlp_peaks, default=math.nan)),
    ]  # fmt: skip
    return table(
        ("case", "goal", "measured"),
        [(name, goal, "-" if math.isnan(x) else f"{x:.3g}") for name, goal, x in lines],
    )


def training_table(rows: Sequence[Row]) -> str:
    """Return the table of all training cases."""
    header = (
        "environment, network", "ranks", "training steps/s", "quartiles", "environment alone",
        "ratio", *PARTS, "start-up s", "peak MiB",
    )  # fmt: skip
    lines = [
        (
            case(row),
            f"{row['ranks']}",
            f"{row['train_steps_per_s']:,.0f}",
            f"{row['train_steps_per_s_q1']:,.0f} to {row['train_steps_per_s_q3']:,.0f}",
            f"{row['env_steps_per_s']:,.0f}",
            f"{row['ratio']:.2f}",
            *(share(row, part) for part in PARTS),
            f"{row['startup_s']:.1f} {row['compile_cache']}".strip(),
            f"{row['peak_mib']:.0f}",
        )
        for row in rows
    ]
    return table(header, lines)


def peer_table(rows: Sequence[Row]) -> str:
    """Return the table of the cases that were measured beside a peer, or that there are none."""
    if not rows:
        return "Not measured in this run: give `--peer sb3`."
    header = (
        "environment, network", "ours, steps/s", "peer's, steps/s", "ratio", "its range", "rounds",
        "peer",
    )  # fmt: skip
    lines = [
        (
            case(row),
            f"{row['train_steps_per_s']:,.0f}",
            f"{row['peer_steps_per_s']:,.0f}",
            f"{row['speedup']:.2f}",
            f"{row['speedup_min']:.2f} to {row['speedup_max']:.2f}",
            f"{row['rounds']}",
            f"{row['peer']}, {row['peer_versions']}",
        )
        for row in rows
    ]
    return table(header, lines)


def growth(train: Sequence[Row], allreduce: Sequence[Row]) -> Iterator[str]:
    """Yield paragraphs on more ranks, larger networks, and the Allreduce."""
    if lines := scaling_lines(train):
        yield wrapped(
            "**Ranks.** Every rank brings its own environment and minibatches (weak scaling), so "
            "steps/s should grow with the number of ranks, up to the number of cores:"
        )
        yield table(
            ("environment", "ranks", "training steps/s", "per core in use, over one rank's",
             "over the row above", "environment alone, over the row above"),
            lines,
        )  # fmt: skip
    one_rank = [row for row in train if row["ranks"] == 1]
    if sizes := [row for row in one_rank if row is not find(train, row["environment"])]:
        sizes.append(find(train, sizes[0]["environment"]))
        listed = ", ".join(
            f"{row['network']} ({row['parameters']:,} parameters) {row['train_steps_per_s']:,.0f}"
            for row in sorted(sizes, key=lambda row: row["parameters"])
        )
        yield wrapped(
            f"**Network size.** {sizes[0]['environment']}, one rank, steps/s by layers x units of "
            f"each tower: {listed}."
        )
    if allreduce:
        listed = ", ".join(
            f"{row['floats']:,} floats on {row['ranks']} ranks {row['allreduce_us']:,.1f}"
            for row in sorted(allreduce, key=lambda row: (row["floats"], row["ranks"]))
        )
        yield wrapped(f"**Allreduce**, microseconds per call in the fastest block: {listed}.")


def scaling_lines(train: Sequence[Row]) -> list[Sequence[str]]:
    """Return table lines for the environments that were measured on one rank and on more."""
    lines: list[Sequence[str]] = []
    for environment in dict.fromkeys(row["environment"] for row in train):
        numbers = sorted({row["ranks"] for row in train if row["environment"] == environment})
        if numbers[0] != 1 or len(numbers) == 1:
            continue
        first = above = find(train, environment)
        for ranks in numbers:
            row = find(train, environment, ranks)
            rate, cores_in_use = row["train_steps_per_s"], min(ranks, row["cores"])
            line = [
                environment,
                f"{ranks}",
                f"{rate:,.0f}",
                f"{rate / first['train_steps_per_s'] / cores_in_use:.2f}",
                f"{rate / above['train_steps_per_s']:.2f}",
                f"{row['env_steps_per_s'] / above['env_steps_per_s']:.2f}",
            ]
            lines.append(line if ranks > 1 else [*line[:3], "", "", ""])
            above = row
    return lines
