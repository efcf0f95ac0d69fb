"""What throughput.py measured, as a CSV, as tables for README.md, and the model of many ranks.

A row is a dict with the keys of COLUMNS; `kind` is train, peer or allreduce, and what does not
apply to a kind is "". All numbers in the text come from the rows, except ASSUMED_LINKS and the
goals.
"""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

BEGIN = "<!-- made by throughput.py from results/throughput.csv: begin -->"
END = "<!-- made by throughput.py: end -->"

# For the model: seconds a message, and bytes a second and rank. Assumed, not measured.
ASSUMED_LINKS = {
    "100 Gb/s InfiniBand": (2e-6, 12.5e9),
    "10 Gb/s Ethernet": (25e-6, 1.25e9),
}
MODEL_RANKS = (16, 64, 256, 1024)

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


# ---- The model -----------------------------------------------------------------------------------


def allreduce_seconds(ranks: int, *, floats: int, latency: float, bandwidth: float) -> float:
    """Return what an Allreduce of float32 takes by the model, in seconds.

    T(p) = 2 log2(p) latency + 2 (p - 1) / p bytes / bandwidth

    That is a reduce-scatter by recursive halving, then an allgather by recursive doubling, which
    MPICH takes for vectors of these lengths. The additions are left out.

    Source: Thakur, Rabenseifner, Gropp 2005, Optimization of Collective Communication Operations in
    MPICH.

    Args:
        ranks: p, a power of two.
        floats: of the vector, 4 bytes each.
        latency: seconds a message.
        bandwidth: bytes a second and rank.
    """
    messages = 2 * math.log2(ranks) * latency
    return messages + 2 * (ranks - 1) / ranks * 4 * floats / bandwidth


def communicating_share(
    ranks: int, *, floats: int, updates: int, alone_seconds: float, latency: float, bandwidth: float
) -> float:
    """Return the share of an iteration that the gradients' Allreduce takes, from 0 to 1.

    Args:
        ranks: p.
        floats: of the gradient.
        updates: in an iteration, one Allreduce each.
        alone_seconds: an iteration of one rank, which has nobody to talk to.
        latency: seconds a message.
        bandwidth: bytes a second and rank.
    """
    once = allreduce_seconds(ranks, floats=floats, latency=latency, bandwidth=bandwidth)
    return updates * once / (updates * once + alone_seconds)


def measured_link(times: dict[tuple[int, int], float]) -> tuple[float, float]:
    """Return the model's latency and bandwidth from what Allreduce takes between two ranks.

    Args:
        times: seconds a call by (ranks, floats). One float goes as one message; what the longest
            vector takes beyond its two messages gives the bandwidth.
    """
    floats = max(length for ranks, length in times if ranks == 2)
    latency = times[2, 1]
    return latency, 4 * floats / (times[2, floats] - 2 * latency)


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


def render(rows: Sequence[Row]) -> str:
    """Return README.md's part that is made from the rows of one run."""
    by_kind = {
        kind: [row for row in rows if row["kind"] == kind]
        for kind in ("train", "peer", "allreduce")
    }
    first = rows[0]
    paragraphs = [
        f"`{first['command']}`, {first['date']}, commit {first['commit']}, seed {first['seed']}. "
        f"{first['cpu']}, {first['cores']} cores, {first['machine']}, load before the run "
        f"{first['load_before']}; threads of a rank: {first['threads']}. {first['versions']}; "
        f"{first['mpi']}.",
        goals_table(by_kind["train"], by_kind["peer"]),
        "### Training and the environment alone",
        training_table(by_kind["train"]),
        "### Beside a peer",
        peer_table(by_kind["peer"]),
        "### How the cost grows",
        *growth(by_kind["train"], by_kind["allreduce"]),
    ]
    return "\n\n".join(paragraphs)


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
        return "Not measured in this run: it takes `--peer sb3`."
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
    """Yield paragraphs on more ranks, larger networks, and many more ranks by the model."""
    if lines := scaling_lines(train):
        yield (
            "**Ranks.** Every rank brings its own environment and minibatches (weak scaling), so "
            "steps/s should grow with the ranks, up to the number of cores:"
        )
        yield table(
            ("environment", "ranks", "training steps/s", "a core in use, over one rank's",
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
        yield (
            f"**Network size.** {sizes[0]['environment']}, one rank, layers x units of each tower, "
            f"steps/s: {listed}."
        )
    times = {(row["ranks"], row["floats"]): row["allreduce_us"] / 1e6 for row in allreduce}
    if times:
        listed = ", ".join(
            f"{floats:,} floats on {ranks} ranks {seconds * 1e6:,.1f}"
            for (ranks, floats), seconds in sorted(times.items(), key=lambda item: item[0][::-1])
        )
        yield f"**Allreduce** here, microseconds a call in the quickest of some blocks: {listed}."
    if one_rank and (2, 1) in times:
        networks = {row["preset"]: row for row in reversed(one_rank)}  # the first of each preset
        yield from many_ranks(networks.values(), measured_link(times))


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


def many_ranks(rows: Iterable[Row], here: tuple[float, float]) -> Iterator[str]:
    """Yield the model's prediction, as text and as a table.

    Args:
        rows: of one rank, one of each network.
        here: measured latency and bandwidth.
    """
    links = {"this machine's memory": here, **ASSUMED_LINKS}
    described = ", ".join(
        f"{name} {latency * 1e6:.3g} us and {bandwidth / 1e9:.3g} GB/s"
        for name, (latency, bandwidth) in links.items()
    )
    yield (
        "**Many ranks.** By the model, an update's Allreduce on p ranks takes T(p) = 2 log2(p) "
        "latency + 2 (p - 1) / p bytes / bandwidth, the rest of an iteration what it takes here. "
        "Latency of a message and bandwidth of a rank, measured for the first link and assumed for "
        f"the others: {described}. Not in the model: waiting for the slowest rank, and ranks that "
        "share a link, which divide its bandwidth. It says that Allreduce takes of an iteration:"
    )
    lines = []
    for row in rows:
        for name, (latency, bandwidth) in links.items():
            shares = [
                communicating_share(
                    ranks,
                    floats=row["parameters"],
                    updates=row["updates_per_iteration"],
                    alone_seconds=row["steps_per_iteration"] / row["train_steps_per_s"],
                    latency=latency,
                    bandwidth=bandwidth,
                )
                for ranks in MODEL_RANKS
            ]
            lines.append([f"{case(row)}: {name}", *(f"{100 * each:.0f} %" for each in shares)])
    yield table(["", *(f"{ranks} ranks" for ranks in MODEL_RANKS)], lines)
