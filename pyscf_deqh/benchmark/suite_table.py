"""The suite's table in Markdown: ratios of each set, and below it every run that disappoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .acceleration import ABOVE, Results, above_baseline, not_converged_alone
from .environment import measured_with
from .report import markdown_table
from .sets import SEED, SUITE

# Header, name in the summary, factor, digits.
_COLUMNS = (
    ("wall vs minao", "wall_ratio", 1.0, 3),
    ("full Fock builds", "full_builds_deqh", 1.0, 1),
    ("of minao", "full_builds_baseline", 1.0, 1),
    ("MAE of H / micro-Eh", "hamiltonian_mae", 1e6, 0),
    ("of the guess", "refined_mae", 1e6, 2),
    ("fitted cycles", "guess_cycles", 1.0, 1),
    ("own share of a build", "own_share", 1.0, 2),
    ("most memory / MB", "peak_memory_deqh", 1.0, 0),
    ("of minao", "peak_memory_baseline", 1.0, 0),
)

_EXPLANATION = (
    "Mean ± standard deviation (median) over the molecules where both runs converged; of seconds "
    "over those that did not run beside others. wall: seconds, DEQH over minao, guess included; "
    "full Fock builds: the first one, one in each of PySCF's cycles, the check at the end. MAE of "
    "H: against the converged Fock matrix, of the network's prediction and of the guess after its "
    "cycles; fitted cycles: density-fitted and corrected ones, in the guess and in the SCF. Own "
    "share: seconds of the guess and of all corrected cycles, without PySCF's own integrals, over "
    "those of one full Fock build; of the molecules for which it was kept. Most memory: that the "
    "process held more than at the beginning."
)


def suite_table(
    results: Mapping[str, Results],
    methods: Sequence[dict[str, Any]],
) -> str:
    """The whole text.

    Args:
        results: by name of the set, merged over its files.
        methods: with the models' names, weights and devices.
    """
    header = ["set", "n", *(column[0] for column in _COLUMNS)]
    cells = [_row(name, entry) for name, entry in results.items()]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    header, *cells = (
        [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        for row in (header, *cells)
    )
    lines = ["# Benchmark suite", "", *markdown_table(header, cells), "", _EXPLANATION]
    for title, found in _disappointments(results).items():
        lines += ["", f"{title}: {len(found) or 'none'}", *(["", *found] if found else [])]
    lines += measured_with(row for entry in results.values() for row in _placed(entry))
    lines += _unique(
        f"- model {m['model']} (weights {m['weights'][:12]}), device {m['device']}" for m in methods
    )
    lines.append(f"- molecules in random order, seed {SEED}")
    return "\n".join(lines) + "\n"


def _placed(results: Results) -> Iterator[dict[str, Any]]:
    """Rows with the state that has made them: where there was one alone, those of before, too."""
    only = results.environments[0] if len(results.environments) == 1 else None
    for row in results.rows:
        yield row if "environment" in row else row | {"environment": only}


def _unique(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def _row(name: str, results: Results) -> list[str]:
    summary = results.summaries()["minao"]
    n, rows = summary["n"], len(results.rows) + len(results.failures)
    cells = [SUITE[name].title, str(n) if n == rows else f"{n} of {rows}"]
    for _, quantity, factor, digits in _COLUMNS:
        value = summary[quantity]
        # A prediction of one functional has no error against the matrix of another.
        foreign = quantity == "hamiltonian_mae" and SUITE[name].is_transfer
        if value is None or not value["n"] or foreign:
            cells.append("")
            continue
        mean, std, median = (
            f"{factor * value[part]:.{digits}f}" for part in ("mean", "std", "median")
        )
        spread = f" ± {std} ({median})" if value["n"] > 1 else ""
        cells.append(mean + spread + (f", n = {value['n']}" if value["n"] != n else ""))
    return cells


def _rescued(rows: Sequence[dict]) -> list[dict]:
    """Where DEQH converged and minao did not."""
    return [r for r in rows if r["deqh"]["converged"] and not r["baselines"]["minao"]["converged"]]


def _disappointments(results: Mapping[str, Results]) -> dict[str, list[str]]:
    """Lines of the lists below the table, by title; the last ones do not disappoint."""
    lists: dict[str, list[str]] = {
        "Not run": [],
        "Not converged, although minao converged": [],
        f"Energy above minao's by more than {ABOVE:.0e} Eh": [],
        "More cycles than from minao": [],
        "Longer than from minao": [],
        "Integrals in memory with DEQH or minao alone": [],
        "Converged, although minao did not": [],
    }
    not_run, not_converged, above, more, longer, unlike, rescued = lists.values()
    for name, entry in results.items():
        not_run += [f"- {name}: {f['name']}: {f['reason']}" for f in entry.failures]
        lost = not_converged_alone(entry.rows, "minao")
        not_converged += [f"- {name}: {r['name']}" for r in lost]
        rescued += [f"- {name}: {r['name']}" for r in _rescued(entry.rows)]
        above += [
            f"- {name}: {r['name']}: {r['energy_difference']['minao']:.1e} Eh"
            + (" (minao not converged)" if not r["baselines"]["minao"]["converged"] else "")
            for r in above_baseline(entry.rows, "minao")
        ]
        for row in entry.rows:
            deqh, minao, ratio = row["deqh"], row["baselines"]["minao"], row["ratios"]["minao"]
            if not (deqh["converged"] and minao["converged"]):
                continue
            if deqh["cycles"] > minao["cycles"]:
                cycles = f"{deqh['cycles']} instead of {minao['cycles']}"
                more.append(f"- {name}: {row['name']}: {cycles}")
            if row.get("alone", True) and ratio["wall_ratio"] > 1:
                longer.append(f"- {name}: {row['name']}: {ratio['wall_ratio']:.2f} of the time")
            if deqh.get("in_memory") != minao.get("in_memory"):
                unlike.append(f"- {name}: {row['name']}")
    return lists
