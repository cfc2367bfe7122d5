"""PySCF as an engine: arrays of NumPy, integrals on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import scipy.linalg
from pyscf import gto, lib
from pyscf.scf import diis, ghf, hf, rohf, uhf

from ..process import side_by_side
from ..pyscf_api import (
    bytes_of_integrals,
    cavity_of,
    has_plain_hcore,
    make_integrals,
    three_index_integrals,
)
from .atoms import minimal_atoms

if TYPE_CHECKING:
    import torch
    from pyscf.gto import Mole
    from torch import Tensor

# Eigenvalue of an overlap below which its functions depend on each other: that of PySCF's
# scf.addons.remove_linear_dep_. Its SCFs leave out more since 2.13, below 1e-6.
LINEAR_DEPENDENCY = 1e-8
# Grid points of one block: what is made of it stays in the caches. A multiple of the 56 for which
# PySCF's screening tables have one row. Orbitals whose values and gradients are all below the
# second number are left out of a block, which changes energies of small molecules by a
# nano-hartree; where more than the third part is left, none.
GRID_BLOCK, NEGLIGIBLE, _ALL = 952, 1e-6, 0.9
# Relative eigenvalue of a metric below which combinations of functions cannot be told apart, and
# the square of a relative pivot below which its Cholesky factor is not to be trusted.
_DEPENDENT, _CHOLESKY = 1e-9, 1e-8
# Electrons that a grid point stands for at most, below which it is left out: a fifth of a coarse
# grid, and at most some micro-hartree of a matrix element.
_UNSEEN = 1e-8
# Where basis functions end, and the distances at which they are tabulated, bohr.
_REACH, _STEP = 60.0, 0.02


class Engine:
    """PySCF's part of the work; an engine with other arrays overrides it.

    Arrays are in atomic units and (nao, nao) unless something else is said.

    Attributes:
        scf: its modules of this name.
        diis_base: what an SCF object's ``DIIS`` must be a subclass of.
        device: where tensors live if nobody asks for another device.
        fixed: whether they can live nowhere else.
        factorizes: whether its Fock matrices gain from densities that are tagged with orbitals.
        stop: part of the gradient that a corrected step is expected to leave, at which its fitted
            cycles end; the larger, the more a fitted matrix costs in full ones.
        goal: part of the SCF's threshold for the gradient below which no corrected step is worth
            its time, in closed shells with a wide gap.
        block_bytes: working memory of one block of fitted integrals.
        in_blocks: whether fitted integrals are kept in blocks of neighbouring atoms.
        keeps_pairs: whether there are :meth:`pair_integrals`, for double precision.
        peak: memory that making fitted integrals takes for a while, in sizes of the result in
            double precision.
    """

    scf: ClassVar[dict[str, Any]] = {
        "hf": hf, "uhf": uhf, "rohf": rohf, "ghf": ghf, "diis": diis,
    }  # fmt: skip
    diis_base: ClassVar[Any] = lib.diis.DIIS
    device = "cpu"
    fixed = factorizes = False
    stop = 0.1
    goal = 0.5
    block_bytes = 2**27
    in_blocks = True
    keeps_pairs = False
    peak = 0.0

    # Classes.

    def classes(self) -> dict[str, Any]:
        """Those of molecular SCFs with spatial orbitals; subclasses come before their bases."""
        modules = {"ghf": "ghf", "uhf": "uhf", "rohf": "rohf", "rhf": "hf"}
        return {name: getattr(self.scf[m], name.upper()) for name, m in modules.items()}

    def class_of(self, mf: Any) -> str | None:
        """Which of them an SCF object is of; None for others."""
        for name, cls in self.classes().items():
            if isinstance(mf, cls):
                return name
        return None

    # Arrays.

    def array(self, x: Any) -> Any:
        """As an array of this engine."""
        return np.asarray(x)

    def host(self, x: Any) -> np.ndarray:
        """As an array of NumPy."""
        return np.asarray(x)

    def tensor(self, x: Any, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """As a tensor."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(x)).to(device, dtype)

    def of_tensor(self, x: Tensor) -> Any:
        """A tensor as an array of this engine, float64."""
        return x.double().cpu().numpy()

    def tagged(self, x: Any, **tags: Any) -> Any:
        """With attributes, as PySCF passes orbitals and Fock matrices on."""
        return lib.tag_array(x, **tags)

    # Linear algebra beyond NumPy's.

    def eigh(self, matrix: Any, overlap: Any) -> tuple[Any, Any]:
        """Eigenvalues (n,), ascending, and vectors (n, n) of H C = S C e.

        Raises:
            numpy.linalg.LinAlgError: the overlap is not positive.
        """
        return scipy.linalg.eigh(matrix, overlap, driver="gvd")

    def solve_positive(self, matrix: Any, right: Any) -> Any:
        """X of A X = B for a positive matrix A; of least squares, if it is not."""
        try:
            return scipy.linalg.cho_solve(scipy.linalg.cho_factor(matrix), right)
        except np.linalg.LinAlgError:
            return np.linalg.lstsq(matrix, right, rcond=None)[0]

    # One-electron matrices.

    def overlap(self, mol: Mole) -> Any:
        return mol.intor_symmetric("int1e_ovlp")

    def cross_overlap(self, mol: Mole, other: Mole) -> Any:
        """Of the orbitals of a molecule in two basis sets, (nao, other nao)."""
        return gto.intor_cross("int1e_ovlp", mol, other)

    def core_hamiltonian(self, mol: Mole) -> Any:
        """Kinetic energy, nuclear attraction and effective core potentials."""
        return np.asarray(hf.get_hcore(mol))

    def has_plain_hcore(self, mf: Any) -> bool:
        """Whether this is the one-electron Hamiltonian of an SCF object."""
        return has_plain_hcore(mf)

    def atomic_density(self, mol: Mole, overlap: Any) -> Any:
        """Superposed atomic densities, PySCF's guess ``minao``, tagged with its orbitals."""
        minimal = minimal_atoms(mol)
        if minimal is None:
            density = hf.init_guess_by_minao(mol)
            orbitals, filled = self.array(density.mo_coeff), self.array(density.mo_occ)
        else:
            # PySCF reads its files of basis sets again for each molecule.
            atoms, occupation = minimal
            orbitals = self.solve_positive(overlap, self.cross_overlap(mol, atoms))
            filled = self.array(occupation)
        return self.tagged((orbitals * filled) @ orbitals.T, mo_coeff=orbitals, mo_occ=filled)

    # Fitted integrals.

    def inverse_root(self, auxiliary: Mole, omega: float) -> np.ndarray:
        """R (k, nao of ``auxiliary``) of the Coulomb metric, R^T R = (P|Q)^-1.

        Args:
            auxiliary: the molecule in auxiliary functions.
            omega: range separation in 1/bohr: erf(omega r) / r. 0 for 1 / r.
        """
        with auxiliary.with_range_coulomb(omega):
            metric = auxiliary.intor("int2c2e")
        # Compact functions cannot be told apart at long range.
        return _inverse_root(metric, cholesky=not omega)

    def three_index(
        self,
        mol: Mole,
        auxiliary: Mole,
        bra: tuple[int, int],
        ket: tuple[int, int],
        omega: float,
    ) -> np.ndarray:
        """Integrals (Q|nm) of consecutive shells, (nao of ``auxiliary``, n, m).

        Args:
            mol, auxiliary: the molecule in orbitals and in auxiliary functions.
            bra, ket: first shell and end, of m and of n.
            omega: see :meth:`inverse_root`.
        """
        with mol.with_range_coulomb(omega):
            return three_index_integrals(mol, auxiliary, bra, ket)

    def packed_integrals(
        self, mol: Mole, auxiliary: Mole, device: torch.device, dtype: torch.dtype, omega: float
    ) -> Tensor:
        """B (functions, pairs of orbitals) of (mn|rs) = sum_P B_P,mn B_P,rs, each pair once in the
        order of ``tril_indices``; only of an engine that is not :attr:`in_blocks`.

        Args:
            mol, auxiliary: the molecule in orbitals and in auxiliary functions.
            device, dtype: of the result.
            omega: see :meth:`inverse_root`.
        """
        raise NotImplementedError

    def own_fit(self, mf: Any) -> Any:
        """The density fitting of an SCF object whose integrals serve :meth:`pair_integrals`; None
        where there is none."""

    def pair_integrals(
        self, mol: Mole, auxiliary: Mole, omega: float, own: Any = None
    ) -> tuple[Tensor, Tensor, Tensor, Callable[[int], Iterator[Tensor]]] | None:
        """The first arguments of :class:`~pyscf_deqh.fock.integrals.PairIntegrals`; None where the
        engine does not keep such.

        Args:
            mol, auxiliary, omega: as of :meth:`fitted_integrals`.
            own: what :meth:`own_fit` has found, instead of new integrals.

        Raises:
            NotEnoughMemoryError: they do not fit.
        """

    def fitted_coulomb(self, mol: Mole, auxiliary: Mole, memory: float) -> Callable[[Any], Any]:
        """From densities to fitted Coulomb matrices, whose integrals are made each time.

        Args:
            memory: in megabytes.
        """
        from pyscf import df

        fitted = df.DF(mol, auxiliary.basis)
        fitted.max_memory = memory
        return lambda density: fitted.get_jk(density, with_k=False)[0]

    # The grid.

    def grids(self, mol: Mole, size: tuple[int, int]) -> Any:
        """Integration grid of so many radial shells and at most so many points in each."""
        from pyscf.dft import gen_grid

        grids = gen_grid.Grids(mol)
        grids.verbose, grids.atom_grid = 0, size
        grids.build()
        seen = _largest_orbitals(mol, grids.coords) * grids.weights > _UNSEEN
        grids.coords, grids.weights = grids.coords[seen], grids.weights[seen]
        grids.non0tab = grids.make_mask(mol, grids.coords)
        return grids

    def orbital_values(
        self, mol: Mole, grids: Any, device: torch.device, dtype: torch.dtype, first: int
    ) -> Iterator[tuple[slice, Tensor | None, Tensor]]:
        """Orbitals on a grid, some neighbouring points at a time from the first one on.

        Yields:
            Points; numbers (k,) of the orbitals that reach them, None where all do; their values
            and gradients (4, k, points).
        """
        import torch
        from pyscf.dft import numint

        ni, own = numint.NumInt(), threading.local()
        # In double precision twice, in the result's, and as one that waits.
        each = 4 * GRID_BLOCK * mol.nao * (2 * 8 + 2 * dtype.itemsize)
        real = np.float32 if dtype == torch.float32 else np.float64

        def block(begin: int) -> tuple[np.ndarray | None, np.ndarray]:
            if not hasattr(own, "room"):  # new memory for each block would take its time
                own.room = np.empty(4 * GRID_BLOCK * mol.nao)
            table = grids.non0tab[begin // numint.BLKSIZE :]
            values = ni.eval_ao(
                mol, grids.coords[begin : begin + GRID_BLOCK], deriv=1, non0tab=table,
                cutoff=grids.cutoff, out=own.room,
            ).transpose(0, 2, 1)  # fmt: skip
            largest = np.maximum(values.max((0, 2)), -values.min((0, 2)))
            reaching = np.flatnonzero(largest > NEGLIGIBLE)
            if len(reaching) > _ALL * mol.nao:
                return None, values.astype(real)
            return reaching, values[:, reaching].astype(real)

        begin, blocks = first, range(first, len(grids.weights), GRID_BLOCK)
        for reaching, values in side_by_side(block, blocks, self.block_bytes // each):
            points = slice(begin, begin + values.shape[-1])
            orbitals = None if reaching is None else torch.from_numpy(reaching).to(device)
            yield points, orbitals, torch.from_numpy(values).to(device)
            begin = points.stop

    def numint(self) -> Any:
        """A new object that evaluates functionals."""
        from pyscf.dft.numint import NumInt

        return NumInt()

    # SCF objects.

    def roothaan(self, focks: Any, densities: Any, overlap: Any) -> Any:
        """Roothaan's effective Fock matrix of those of either spin, tagged with them."""
        return self.scf["rohf"].get_roothaan_fock(focks, densities, overlap)

    def extrapolation(self, overlap: Any) -> Any:
        """A new commutator DIIS for Fock matrices in an overlap (nao, nao)."""
        extrapolation = self.scf["diis"].CDIIS()
        extrapolation.verbose = 0
        return extrapolation

    @property
    def diis_class(self) -> type:
        """An SCF object's ``DIIS`` that no user has changed."""
        return self.scf["diis"].SCF_DIIS

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor that will be large, not set to anything."""
        import torch

        return torch.empty(shape, dtype=dtype, device=device)

    def free_bytes(self, device: torch.device) -> float:
        """Of a GPU's memory, with what is kept for new tensors."""
        import torch

        torch.cuda.empty_cache()
        return float(torch.cuda.mem_get_info(device)[0])

    def memory(self, mf: Any) -> float:
        """Megabytes that are left for a guess beside the two-electron integrals that ``mf``
        holds."""
        return max(mf.max_memory - bytes_of_integrals(mf) / 1e6, 0.0)

    def make_integrals(self, mf: Any) -> None:
        """Make the two-electron integrals that ``mf`` will hold."""
        make_integrals(mf)

    def solvent_of(self, mf: Any, build: bool = False, keep: bool = True) -> Any:
        """A polarizable continuum around ``mf``'s molecule, see
        :func:`~pyscf_deqh.pyscf_api.cavity_of`; None without one."""
        return cavity_of(mf, build, keep)

    def make_room(self) -> None:
        """Let go of memory that is kept for later, where little is left."""

    def give_back(self) -> None:
        """Let others have the memory that is kept for new tensors."""


def _inverse_root(metric: np.ndarray, cholesky: bool = True) -> np.ndarray:
    """R (k, n) with R^T R = M^-1 for a positive matrix M (n, n), or its pseudoinverse where
    functions depend on each other, as those of close atoms do.

    Args:
        metric: M.
        cholesky: try its Cholesky factor first, which is faster.
    """
    if cholesky:
        try:
            lower = scipy.linalg.cholesky(metric, lower=True)
        except np.linalg.LinAlgError:
            return _inverse_root(metric, cholesky=False)
        if lower.diagonal().min() ** 2 > _CHOLESKY * metric.diagonal().max():
            return np.tril(scipy.linalg.lapack.dtrtri(lower, lower=1)[0])
    values, vectors = np.linalg.eigh(metric)
    keep = values > _DEPENDENT * values[-1]
    return (vectors[:, keep] / np.sqrt(values[keep])).T


def _largest_orbitals(mol: Mole, points: np.ndarray) -> np.ndarray:
    """Square of the largest basis function of each atom, summed over atoms, at points (n, 3) in
    bohr: more or less all the density that there can be."""
    line = np.zeros((round(_REACH / _STEP), 3))
    line[:, 2] = _STEP * np.arange(len(line))
    tables: dict[str, np.ndarray] = {}
    total = np.zeros(len(points))
    for atom in range(mol.natm):
        symbol = mol.atom_symbol(atom)
        if symbol not in tables:
            alone = gto.M(atom=[[symbol, (0, 0, 0)]], basis=mol._basis, spin=None, verbose=0)
            tables[symbol] = np.square(alone.eval_gto("GTOval", line)).max(1, initial=0.0)
            tables[symbol][-1] = 0.0
        away = points - mol.atom_coord(atom)
        distances = np.sqrt(np.einsum("ij,ij->i", away, away))
        total += tables[symbol].take((distances / _STEP).astype(int), mode="clip")
    return total


HOST = Engine()
