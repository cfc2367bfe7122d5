"""One network for labels in two basis sets, with the overlap and without it (Wang et al., A.12).

Of the overlap QHNet and DEQHNet see the on-site blocks alone. These are the same for all atoms of
an element: they say which basis set it is, and nothing of the molecule. A network without them has
to predict one matrix for both, which cannot come closer than half their difference.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..checkpoint import weights_hash
from ..data.formats import open_labels
from ..data.splits import split_ids
from ..errors import ConfigError
from ..graph.basis import template_of
from ..metrics import UNITS
from .cache import ResultCache
from .comparison import NOTES, provenance
from .datasets import DEFAULT_BASIS, MD17, Dataset
from .options import Options
from .report import Report, spread, with_spread
from .samples import SPLIT_SIZES, make_water
from .trainings import VARIANTS, Training, errors_on_test, run_training

_NETWORKS = ("qhnet", "qhnet+s", "deqhnet")
_FACTOR = UNITS["mae"][0]


def run(options: Options) -> Report:
    if not options.data and options.size.name == "smoke":
        folder = make_water(options.out / "samples-bases", (DEFAULT_BASIS, "6-31g*"))
        options = replace(options, data=(folder,), split_sizes=SPLIT_SIZES)
    one, other = _pair(options)
    least = _least(one, other, options.size.max_test)
    both = replace(
        one,
        name=f"{one.name}-both",
        databases=one.databases + other.databases,
        bases=one.bases + other.bases,
    )
    results: dict[str, Any] = {
        variant: {
            " and ".join(trained.bases): _errors(variant, trained, (one, other), options)
            for trained in (one, other, both)
        }
        for variant in _NETWORKS
    }
    rows = [
        [VARIANTS[variant].label, bases,
         *(with_spread(ours[basis], _FACTOR, 1) if basis in ours else "-"
           for basis in both.bases),
         with_spread(ours["steps"], 1.0, 0), str(ours["steps"]["n"])]
        for variant, trained in results.items()
        for bases, ours in trained.items()
    ]  # fmt: skip
    results["least_without_overlap"] = least
    header = ["model", "labels in", *(f"H, {basis}" for basis in both.bases), "steps", "seeds"]
    notes = [
        *NOTES,
        f"One matrix for both basis sets is {_FACTOR * least:.1f} micro-hartree off at least, on "
        "average over the elements of both matrices: half of what the labels differ by in the "
        "orbitals that both have.",
        "The same geometries in both: a training on both has twice the labels, not more molecules.",
        *provenance([one, other]),
    ]
    title = "Labels in two basis sets (A.12)"
    return Report("bases", title, (header, rows), results, lambda f: _draw(f, results), notes)


def _pair(options: Options) -> tuple[Dataset, Dataset]:
    """A molecule's labels in def2-SVP and in another basis set."""
    found = options.found
    for name in MD17:
        others = [d for d in found.values() if d.molecule == name and d.name != name]
        if name in found and len(others) == 1:
            return found[name], others[0]
    raise ConfigError(
        f"one of MD17's molecules with labels in {DEFAULT_BASIS} and in one other basis set is "
        f"needed, and --data has {', '.join(found) or 'nothing'}: 'python -m pyscf_deqh.data label "
        'water.xyz --xc pbe --basis "6-31g*" --out water-631gs.db\' makes them'
    )


def _errors(
    variant: str, trained: Dataset, tested: tuple[Dataset, ...], options: Options
) -> dict[str, Any]:
    """MAE of H by basis set over seeds, of a network that has seen the basis set."""
    found: dict[str, list[float]] = {}
    steps = []
    for seed in options.seeds:
        training = Training(variant, trained, seed)
        run = run_training(training, options)
        steps.append(run["steps"])
        cache = ResultCache(training.folder(options) / "by_basis.json", training.settings(options))
        for dataset in tested:
            (basis,) = dataset.bases
            if trained.bases == dataset.bases:
                errors = run["test_errors"]["mae"]
            elif basis in trained.bases:
                weights = weights_hash(training.folder(options) / "model")
                errors = cache(f"{basis}, {weights}", partial(_mae, training, dataset, options))
            else:
                continue
            found.setdefault(basis, []).append(float(np.mean(errors)))
    return {basis: spread(values) for basis, values in found.items()} | {"steps": spread(steps)}


def _mae(training: Training, dataset: Dataset, options: Options) -> list[float]:
    return errors_on_test(training.folder(options) / "model", dataset, options)["mae"]


def _least(one: Dataset, other: Dataset, n: int) -> float:
    """Least MAE (hartree), over all elements of both matrices, of one matrix for both."""
    differences = elements = 0.0
    with open_labels(one.databases[0]) as first, open_labels(other.databases[0]) as second:
        ids = [split_ids(f, "test", one.split_rule, one.split_sizes) for f in (first, second)]
        if ids[0] != ids[1]:
            raise ConfigError(f"{first.path} and {second.path} have other rows for test")
        # Those that the networks are tested on.
        chosen = np.linspace(0, len(ids[0]) - 1, min(n or len(ids[0]), len(ids[0]))).round()
        for k in chosen.astype(int):
            row = ids[0][k]
            records = first[row], second[row]
            if not np.allclose(records[0].positions, records[1].positions, atol=1e-6):
                raise ConfigError(f"row {row} has another geometry in {second.path}")
            a, b = (_in_slots(r, d.bases[0]) for r, d in zip(records, (one, other), strict=True))
            shared = ~(np.isnan(a) | np.isnan(b))
            differences += np.abs(a - b)[shared].sum()
            elements += sum(r.hamiltonian.size for r in records)
    return differences / elements


def _in_slots(record: Any, basis: str) -> np.ndarray:
    """A label in the slots of def2-SVP's template; NaN where it has no orbital."""
    numbers = tuple(sorted(set(record.numbers.tolist())))
    template = template_of(DEFAULT_BASIS, numbers)
    shells = template_of(basis, numbers).shells
    places = np.concatenate([
        atom * template.size + template.slots(z, shells[z])
        for atom, z in enumerate(record.numbers.tolist())
    ])  # fmt: skip
    out = np.full([len(record.numbers) * template.size] * 2, np.nan)
    out[np.ix_(places, places)] = record.hamiltonian
    return out


def _draw(figure: Any, results: dict[str, Any]) -> None:
    trained = list(results[_NETWORKS[0]])
    together = trained[-1]
    for ax, basis in zip(figure.subplots(1, 2), trained[:2], strict=True):
        for v, variant in enumerate(_NETWORKS):
            values = [results[variant][labels][basis] for labels in (basis, together)]
            ax.bar(
                [i + 0.25 * (v - 1) for i in range(2)], [_FACTOR * o["mean"] for o in values], 0.23,
                yerr=[_FACTOR * (o["std"] or 0.0) for o in values], label=VARIANTS[variant].label,
            )  # fmt: skip
        ax.set_yscale("log")
        ax.set_xticks(range(2), ["labels in it alone", "in both"])
        ax.set_ylabel(f"MAE of H in {basis} / micro-Eh")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
