"""Writes ``geometries.smi``: the molecules, geometries and order of the default model's labels; and
``test.smi``, some for comparisons of trained networks.

    python models/training-data/choose.py

Of the molecules of up to 14 heavy atoms in ``molecules.smi`` that are for training or validation:
all that have Si, P, S, Cl or Br, all ions, and a random selection of the others; of ``qm9.smi`` a
random selection. Each comes once, as the minimum near one conformer or, more often, as a moment of
its dynamics at 300 to 500 K; those with a rare element once more, as the other of both. What is for
test or validation, or is a molecule of a benchmark, is left out of training in whatever form:
another list's, stereoisomers, tautomers, acids of anions and bases of cations. Boron is left out:
there are four molecules with it.

``test.smi`` has molecules of the test split, drawn in the same way, none of them of a benchmark or
of another split in the other list.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from rdkit import Chem, RDLogger
from rdkit.Chem.MolStandardize import rdMolStandardize

from pyscf_deqh.data.make.embed import molecule_lines
from pyscf_deqh.data.make.recipe import GeometryRecipe, read_recipes
from pyscf_deqh.data.splits import split_of
from pyscf_deqh.data.xyz import parse_comment

HERE = Path(__file__).parent
BENCHMARKS = HERE.parents[1] / "pyscf_deqh" / "benchmark" / "molecules"
SEED, HEAVY = 0, 14
OTHERS, QM9 = 1700, 2700  # of training and validation together
TESTS = {"rare": 60, "ions": 10, "others": 40, "QM9": 40}
RARE = {"Si", "P", "S", "Cl", "Br"}
KNOWN = {"H", "C", "N", "O", "F", *RARE}
MINIMA = 0.4  # part of the first geometries
TEMPERATURES = (300, 500)
# Ids in the set of labels: those of QM9 and of second geometries begin here. All end in the digit
# that says the split.
FIRST_QM9, FIRST_SECOND = 1_000_000, 2_000_000


def flat(smiles: str) -> str:
    """Canonical SMILES without stereochemistry."""
    return Chem.MolToSmiles(Chem.MolFromSmiles(smiles), isomericSmiles=False)


@functools.cache
def bare(smiles: str) -> str:
    """Heavy atoms and which are bonded, and the hydrogen atoms of the neutral molecule: the same
    for all that differ by where protons and electrons are, and for some that differ by more."""
    molecule = Chem.RWMol(Chem.MolFromSmiles(smiles))
    protons = sum(atom.GetTotalNumHs() for atom in molecule.GetAtoms())
    protons -= Chem.GetFormalCharge(molecule)
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    for atom in molecule.GetAtoms():
        atom.SetFormalCharge(0)
        atom.SetNumExplicitHs(0)
        atom.SetNoImplicit(True)
        atom.SetNumRadicalElectrons(0)
        atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
    for bond in molecule.GetBonds():
        bond.SetBondType(Chem.BondType.SINGLE)
        bond.SetStereo(Chem.BondStereo.STEREONONE)
    return f"{Chem.MolToSmiles(molecule, isomericSmiles=False)} H{protons}"


@functools.cache
def tautomer(smiles: str) -> str:
    """Canonical SMILES of the neutral molecule's canonical tautomer."""
    molecule = rdMolStandardize.Uncharger().uncharge(Chem.MolFromSmiles(smiles))
    enumerator = rdMolStandardize.TautomerEnumerator()
    enumerator.SetMaxTautomers(200)
    return flat(Chem.MolToSmiles(enumerator.Canonicalize(molecule)))


class Forms:
    """Molecules, known in all of their forms."""

    def __init__(self, molecules: Iterable[str]):
        self._tautomers: dict[str, set[str]] = {}
        self._ions: set[str] = set()
        for smiles in set(map(flat, molecules)):
            self._tautomers.setdefault(bare(smiles), set()).add(smiles)
            if is_ion(smiles):
                self._ions.add(bare(smiles))

    def have(self, smiles: str) -> bool:
        """Whether a molecule is one of them: of ions by their atoms and bonds alone."""
        atoms = bare(smiles)
        known = self._tautomers.get(atoms, set())
        if not known or is_ion(smiles) or atoms in self._ions:
            return bool(known)
        smiles = flat(smiles)
        return smiles in known or tautomer(smiles) in map(tautomer, known)


def is_ion(smiles: str) -> bool:
    return Chem.GetFormalCharge(Chem.MolFromSmiles(smiles)) != 0


def benchmark_molecules() -> Iterator[str]:
    for path in sorted(BENCHMARKS.glob("*.smi")):
        yield from (line.split()[0] for _, line in molecule_lines(path))
    for path in sorted(BENCHMARKS.glob("*_test.xyz")):
        for line in path.read_text().splitlines():
            if smiles := parse_comment(line).get("smiles"):
                yield smiles


def elements(recipe: GeometryRecipe) -> set[str]:
    found = {atom.GetSymbol() for atom in Chem.MolFromSmiles(recipe.smiles).GetAtoms()}
    return found | {"H"}


def main() -> None:
    RDLogger.DisableLog("rdApp.*")
    rng = random.Random(SEED)
    everything = [*read_recipes(HERE / "molecules.smi"), *read_recipes(HERE / "qm9.smi")]
    for recipe in everything:
        molecule = Chem.MolFromSmiles(recipe.smiles)
        recipe.info.setdefault("heavy", str(molecule.GetNumHeavyAtoms()))
        recipe.info.setdefault("charge", str(Chem.GetFormalCharge(molecule)))
    names = {id(recipe): flat(recipe.smiles) for recipe in everything}
    of_split: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for recipe in everything:
        of_split[split_of(recipe.molecule)].append(recipe.smiles)
    benchmarks = list(benchmark_molecules())
    # What no molecule of a split may be.
    others = {
        "train": Forms([*of_split["valid"], *of_split["test"], *benchmarks]),
        "valid": Forms([*of_split["test"], *benchmarks]),
        "test": Forms([*of_split["train"], *of_split["valid"], *benchmarks]),
    }
    taken: set[str] = set()

    small = [r for r in everything if r.qm9_id is None and r.n_heavy <= HEAVY]
    kinds = {
        "rare": [r for r in small if elements(r) & RARE],
        "ions": [r for r in small if r.charge],
        "others": small,
        "QM9": [r for r in everything if r.qm9_id is not None],
    }

    def chosen(
        recipes: list[GeometryRecipe], limit: int | None, tests: bool
    ) -> list[GeometryRecipe]:
        """At random; each molecule once, where it may be."""
        rng.shuffle(recipes)
        found: list[GeometryRecipe] = []
        for recipe in recipes:
            name, split = names[id(recipe)], split_of(recipe.molecule)
            right = (split == "test") == tests and name not in taken
            usable = right and elements(recipe) <= KNOWN and len(found) != limit
            if usable and not others[split].have(recipe.smiles):
                taken.add(name)
                found.append(recipe)
        return found

    limits = {"rare": None, "ions": None, "others": OTHERS, "QM9": QM9}
    parts = {name: chosen(kinds[name], limit, tests=False) for name, limit in limits.items()}
    write("geometries.smi", parts, rng)
    tests = {name: chosen(kinds[name], limit, tests=True) for name, limit in TESTS.items()}
    write("test.smi", tests, rng)


def write(name: str, parts: dict[str, list[GeometryRecipe]], rng: random.Random) -> None:
    """Geometries of the molecules, in random order."""
    written: list[str] = []
    for recipe in itertools.chain(*parts.values()):
        number, temperature = recipe.molecule, rng.randint(*TEMPERATURES)
        first = FIRST_QM9 * (recipe.qm9_id is not None) + number
        minimum = rng.random() < MINIMA
        geometries = [(first, 0 if minimum else temperature)]
        if elements(recipe) & RARE:
            geometries.append((FIRST_SECOND + number, temperature if minimum else 0))
        for row, kelvin in geometries:
            qm9_id = "" if recipe.qm9_id is None else f" qm9_id={recipe.qm9_id}"
            written.append(f"{recipe.smiles} id={row}{qm9_id} charge={recipe.charge} "
                           f"heavy={recipe.n_heavy} temperature={kelvin}")  # fmt: skip
    rng.shuffle(written)
    header = "# Made by choose.py. SMILES id=N charge=Q heavy=N temperature=K; 0 K: the minimum.\n"
    (HERE / name).write_text(header + "\n".join(written) + "\n")
    for kind, recipes in parts.items():
        splits = Counter(split_of(r.molecule) for r in recipes)
        print(f"{name}, {kind}: {len(recipes)} molecules, {splits}")
    print(f"{name}: {len(written)} geometries")


if __name__ == "__main__":
    main()
