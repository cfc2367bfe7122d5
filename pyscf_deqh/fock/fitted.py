"""Cheap Fock matrices of one molecule: fitted integrals and a coarse grid, all of it kept.

The orbital products are fitted to an auxiliary basis (density fitting, Whitten, J. Chem. Phys. 58,
4496, 1973) and the functional is integrated on a grid that is coarser than an SCF's. The fitted
three-index tensor and the orbitals' values on the grid are made once, so that each Fock matrix is
a few dense matrix products, in single precision and on a GPU where there is one: about a twelfth of
an SCF cycle of PySCF's defaults. Converged, such Fock matrices differ from PySCF's by some
micro-hartree on average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from ..errors import UnsupportedMoleculeError
from .orbitals import Orbitals, by_spin

if TYPE_CHECKING:
    from pyscf.df import DF
    from pyscf.dft.gen_grid import Grids
    from pyscf.gto import Mole

_Matrix = TypeVar("_Matrix", np.ndarray, Tensor)

# Made for Coulomb matrices alone; with def2-universal-jkfit, half as large again, the exchange of
# the light elements comes out no better.
AUXBASIS = "def2-universal-jfit"
GRID = (30, 110)  # radial shells, largest angular grid; pruned by PySCF's default scheme
# Shares of ``mol.max_memory`` that the integrals and the orbitals' values on the grid may take.
_INTEGRALS_SHARE, _VALUES_SHARE = 0.5, 0.25
# An unpacked three-index tensor that is kept, and the working memory of one block, in bytes.
_UNPACKED_BYTES = 2**30
_BLOCK_BYTES = 2**27
_POINTS = 8192  # grid points of one block
# Relative eigenvalue of the long-range metric below which compact functions cannot be told apart.
_DEPENDENT = 1e-9


def coarse_grid(mol: Mole, size: tuple[int, int] = GRID) -> Grids:
    """Integration grid of so many radial shells and at most so many points in each."""
    from pyscf.dft import gen_grid

    grids = gen_grid.Grids(mol)
    grids.verbose, grids.atom_grid = 0, size
    return grids.build(with_non0tab=True)


class FittedIntegrals:
    """Orbital products fitted in the Coulomb metric: (mn|rs) = sum_P B_P,mn B_P,rs.

    Args:
        mol: the molecule.
        device, dtype: of the tensor and of its products.
        omega: range-separation parameter in 1/bohr: fits erf(omega r) / r, the long range.
        auxbasis: the auxiliary basis set.

    Raises:
        UnsupportedMoleculeError: the tensor is too large for ``mol.max_memory``.
    """

    def __init__(
        self,
        mol: Mole,
        device: torch.device | str,
        dtype: torch.dtype,
        omega: float = 0.0,
        auxbasis: str = AUXBASIS,
    ):
        from pyscf import df

        self.nao = mol.nao
        auxiliary = df.addons.make_auxmol(mol, auxbasis)
        n_pairs, n_auxiliary = self.nao * (self.nao + 1) // 2, auxiliary.nao
        size = dtype.itemsize
        if size * n_pairs * n_auxiliary > 1e6 * _INTEGRALS_SHARE * mol.max_memory:
            raise UnsupportedMoleculeError(
                f"the fitted integrals of {self.nao} orbitals do not fit into "
                f"{_INTEGRALS_SHARE:.0%} of mol.max_memory = {mol.max_memory} MB"
            )
        self.packed = torch.empty(n_auxiliary, n_pairs, device=device, dtype=dtype)
        with mol.with_range_coulomb(omega), auxiliary.with_range_coulomb(omega):
            metric = auxiliary.intor("int2c2e")
            first = 0
            for shells in _shell_blocks(auxiliary, max(_BLOCK_BYTES // (8 * n_pairs), 1)):
                block = df.incore.aux_e2(
                    mol, auxiliary, aosym="s2ij",
                    shls_slice=(0, mol.nbas, 0, mol.nbas, *shells),
                )  # fmt: skip
                rows = torch.from_numpy(np.ascontiguousarray(block.T)).to(device)
                self.packed[first : first + len(rows)] = rows
                first += len(rows)
        factor = torch.from_numpy(_inverse_root(metric, singular=omega != 0)).to(device, dtype)
        for columns in self.packed.split(max(_BLOCK_BYTES // (size * n_auxiliary), 1), dim=1):
            columns[: len(factor)] = factor @ columns
        self.packed = self.packed[: len(factor)]
        row, column = torch.tril_indices(self.nao, self.nao, device=device)
        self._diagonal = row == column
        self._row, self._column = row, column
        square = torch.empty(self.nao, self.nao, dtype=torch.long, device=device)
        square[row, column] = square[column, row] = torch.arange(n_pairs, device=device)
        self._square = square.reshape(-1)
        unpacked = size * len(factor) * self.nao**2 <= _UNPACKED_BYTES
        self._unpacked = self._unpack(self.packed) if unpacked else None

    def _unpack(self, packed: Tensor) -> Tensor:
        return packed.index_select(1, self._square).view(-1, self.nao, self.nao)

    def coulomb(self, density: Tensor) -> Tensor:
        """Coulomb matrix (nao, nao) of a symmetric density matrix (nao, nao)."""
        weights = torch.where(self._diagonal, 1.0, 2.0).to(density.dtype)
        fitted = self.packed @ (density[self._row, self._column] * weights)
        return (fitted @ self.packed)[self._square].view(self.nao, self.nao)

    def exchange(self, orbitals: Tensor) -> Tensor:
        """Exchange matrix (nao, nao) of the density C C^T of orbitals C (nao, k)."""
        total, n_orbitals = orbitals.new_zeros(self.nao, self.nao), orbitals.shape[1]
        if self._unpacked is not None:
            blocks = iter([self._unpacked])
        else:
            n_rows = max(_BLOCK_BYTES // (orbitals.element_size() * self.nao**2), 1)
            blocks = (self._unpack(rows) for rows in self.packed.split(n_rows))
        for block in blocks:
            half = (block.reshape(-1, self.nao) @ orbitals).view(len(block), self.nao, n_orbitals)
            half = half.transpose(0, 1).reshape(self.nao, len(block) * n_orbitals)
            total += half @ half.T
        return total


def _inverse_root(metric: np.ndarray, singular: bool) -> np.ndarray:
    """R (k, n) with R^T R = M^-1 for a positive matrix M (n, n), or its pseudoinverse."""
    if not singular:
        lower = scipy.linalg.cholesky(metric, lower=True)
        return np.tril(scipy.linalg.lapack.dtrtri(lower, lower=1)[0])
    values, vectors = np.linalg.eigh(metric)
    keep = values > _DEPENDENT * values[-1]
    return (vectors[:, keep] / np.sqrt(values[keep])).T


def _shell_blocks(auxiliary: Mole, limit: int) -> list[tuple[int, int]]:
    """Consecutive shells with at most ``limit`` functions together (or one shell)."""
    offsets = auxiliary.ao_loc_nr()
    blocks, first = [], 0
    for shell in range(1, auxiliary.nbas + 1):
        if shell == auxiliary.nbas or offsets[shell + 1] - offsets[first] > limit:
            blocks.append((first, shell))
            first = shell
    return blocks


class FittedFock:
    """Fock and Kohn-Sham matrices of closed shells, and unrestricted ones of open shells.

    Args:
        mol: the molecule.
        device, dtype: where and how the products are computed.
        auxbasis, grid: the auxiliary basis set; radial shells and largest angular grid.

    Molecules whose integrals do not fit into half of ``mol.max_memory`` have Coulomb matrices (by
    PySCF's objects, on disk), but no exchange.

    Attributes:
        numint: PySCF's object that evaluates functionals; that of an SCF has its user's settings.
    """

    def __init__(
        self,
        mol: Mole,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        auxbasis: str = AUXBASIS,
        grid: tuple[int, int] = GRID,
    ):
        from pyscf.dft.numint import NumInt

        self.mol = mol
        self.device, self.dtype = torch.device(device), dtype
        self.auxbasis, self.grid = auxbasis, grid
        self.numint = NumInt()
        self._long_range: dict[float, FittedIntegrals] = {}

    def _fit(self, omega: float = 0.0) -> FittedIntegrals:
        return FittedIntegrals(self.mol, self.device, self.dtype, omega, self.auxbasis)

    @cached_property
    def integrals(self) -> FittedIntegrals:
        return self._fit()

    @cached_property
    def _on_disk(self) -> DF:
        """PySCF's own integrals, which it keeps on disk where memory does not hold them."""
        from pyscf import df

        return df.DF(self.mol, self.auxbasis)

    @cached_property
    def grids(self) -> Grids:
        return coarse_grid(self.mol, self.grid)

    @cached_property
    def orbital_values(self) -> Tensor:
        """Orbitals and their gradients on the grid, (4, points, nao)."""
        from pyscf.dft import numint

        grids, ni = self.grids, numint.NumInt()
        values = torch.empty(
            4, len(grids.weights), self.mol.nao, device=self.device, dtype=self.dtype
        )
        # PySCF's screening tables come in blocks of its own size.
        step = _POINTS - _POINTS % numint.BLKSIZE
        for first in range(0, len(grids.weights), step):
            part = slice(first, first + step)
            table = grids.non0tab[first // numint.BLKSIZE :]
            block = ni.eval_ao(
                self.mol, grids.coords[part], deriv=1, non0tab=table, cutoff=grids.cutoff
            )
            values[:, part] = torch.from_numpy(block).to(self.device)
        return values

    def __call__(self, hcore: np.ndarray, orbitals: Orbitals, xc: str) -> tuple[np.ndarray, float]:
        """Fock matrix, float64, and electronic energy, both in hartree.

        Args:
            hcore: (nao, nao) one-electron Hamiltonian, hartree.
            orbitals: (nao, k), each scaled by the root of its occupation, for a matrix (nao, nao);
                two such arrays, of either spin, for (2, nao, nao).
            xc: functional in PySCF's notation, or ``hf``.

        Raises:
            UnsupportedMoleculeError: exact exchange is asked for and does not fit into memory.
        """
        spins = self._tensors(orbitals)
        exchange, semilocal, energy = self._exchange_correlation(spins, xc)
        coulomb = self._coulomb(_total_density(spins))
        focks = []
        for c, k, v in zip(by_spin(orbitals), exchange, semilocal, strict=True):
            potential = (k + coulomb).double().cpu().numpy()
            energy += float(np.vdot(c @ c.T, hcore + 0.5 * potential))
            focks.append(hcore + potential + v.double().cpu().numpy())
        return _like(orbitals, focks), energy

    def differences(self, orbitals: Orbitals, xc: str) -> Callable[[Orbitals], np.ndarray]:
        """Differences F(D) - F(D0) of Fock matrices, for all densities D near one D0.

        Added to a better Fock matrix of D0 they give a good approximation of that of D: the error
        of fitting and grid hardly changes between similar densities (the defect correction of
        multigrid methods; Brandt, Math. Comput. 31, 333, 1977). Single precision serves down to
        gradients of 1e-5 hartree, because the Coulomb matrix, by far the largest part, is made of
        the difference of the densities.

        Args:
            orbitals: those of D0, (nao, k) each scaled by the root of its occupation, or two such
                arrays, of either spin.
            xc: functional in PySCF's notation, or ``hf``.

        Returns:
            A function from the orbitals of D, in the same form, to F(D) - F(D0), float64, in
            hartree: (nao, nao), or (2, nao, nao) of either spin.

        Raises:
            UnsupportedMoleculeError: exact exchange is asked for and does not fit into memory.
        """
        origin = _total_density(by_spin(orbitals))
        exchange, semilocal, _ = self._exchange_correlation(self._tensors(orbitals), xc)
        known = [k.double() + v.double() for k, v in zip(exchange, semilocal, strict=True)]

        def difference(displaced: Orbitals) -> np.ndarray:
            total = _total_density(by_spin(displaced))
            coulomb = self._coulomb(self._tensor(total - origin)).double()
            exchange, semilocal, _ = self._exchange_correlation(self._tensors(displaced), xc)
            changes = [
                (coulomb + k.double() + v.double() - before).cpu().numpy()
                for k, v, before in zip(exchange, semilocal, known, strict=True)
            ]
            return _like(displaced, changes)

        return difference

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, self.dtype)

    def _tensors(self, orbitals: Orbitals) -> list[Tensor]:
        return [self._tensor(c) for c in by_spin(orbitals)]

    def _exchange_correlation(
        self, spins: list[Tensor], xc: str
    ) -> tuple[list[Tensor], list[Tensor], float]:
        """Exact exchange and semilocal matrices (nao, nao) by spin, and the semilocal energy."""
        nao = len(spins[0])
        exchange = [c.new_zeros(nao, nao) for c in spins]
        semilocal = [c.new_zeros(nao, nao) for c in spins]
        energy, omega, long_range, hybrid = 0.0, 0.0, 0.0, 1.0
        if xc.lower() != "hf":
            omega, long_range, hybrid = self.numint.rsh_and_hybrid_coeff(xc)
            semilocal, energy = self._semilocal(spins, xc)
        # Electrons exchange with those of their own spin: half of a closed shell's density.
        share = 0.5 if len(spins) == 1 else 1.0
        for matrix, c in zip(exchange, spins, strict=True):
            if hybrid:
                matrix -= share * hybrid * self.integrals.exchange(c)
            if omega and long_range != hybrid:
                screened = self._long_range_integrals(omega).exchange(c)
                matrix -= share * (long_range - hybrid) * screened
        return exchange, semilocal, energy

    def _coulomb(self, density: Tensor) -> Tensor:
        try:
            return self.integrals.coulomb(density)
        except UnsupportedMoleculeError:
            coulomb = self._on_disk.get_jk(density.double().cpu().numpy(), with_k=False)[0]
            return torch.from_numpy(coulomb).to(density)

    def _long_range_integrals(self, omega: float) -> FittedIntegrals:
        if omega not in self._long_range:
            self._long_range[omega] = self._fit(omega)
        return self._long_range[omega]

    def _semilocal(self, spins: list[Tensor], xc: str) -> tuple[list[Tensor], float]:
        """Matrices (nao, nao) by spin and energy of what the functional says on the grid."""
        ni = self.numint
        kind = ni._xc_type(xc)
        if kind == "HF":
            return [c.new_zeros(len(c), len(c)) for c in spins], 0.0
        points, unrestricted = len(self.grids.weights), len(spins) == 2
        size = 4 * points * self.mol.nao * self.dtype.itemsize
        if size > 1e6 * _VALUES_SHARE * self.mol.max_memory:
            # PySCF recomputes the values block by block, and leaves out what is far away.
            densities = np.array([(c @ c.T).double().cpu().numpy() for c in spins])
            if unrestricted:
                _, energy, matrices = ni.nr_uks(self.mol, self.grids, xc, densities)
            else:
                _, energy, matrices = ni.nr_rks(self.mol, self.grids, xc, densities[0])
            return [self._tensor(matrix) for matrix in by_spin(np.asarray(matrices))], float(energy)
        values = self.orbital_values if kind != "LDA" else self.orbital_values[:1]
        density = np.array([_density_on_grid(values, c, kind) for c in spins])
        rho = density if unrestricted else density[0]
        per_electron, derivative = ni.eval_xc_eff(xc, rho, 1, xctype=kind, spin=len(spins) - 1)[:2]
        energy = float(np.dot(per_electron * density[:, 0].sum(0), self.grids.weights))
        weighted = (derivative * self.grids.weights).reshape(len(spins), -1, points)
        return [_potential_matrix(values, self._tensor(weights)) for weights in weighted], energy


def _density_on_grid(values: Tensor, orbitals: Tensor, kind: str) -> np.ndarray:
    """Density, for GGA its gradient, for meta-GGA the kinetic energy density: (1, 4 or 5, points).

    Args:
        values: (1 or 4, points, nao) basis functions and their gradients.
        orbitals: (nao, k), each scaled by the root of its occupation.
        kind: PySCF's name of the kind of functional.
    """
    psi = values @ orbitals
    rows = [psi[0].square().sum(-1)]
    rows += [2 * (psi[0] * gradient).sum(-1) for gradient in psi[1:]]
    if kind == "MGGA":
        rows.append(0.5 * psi[1:].square().sum((0, -1)))
    return torch.stack(rows).double().cpu().numpy()


def _potential_matrix(values: Tensor, weighted: Tensor) -> Tensor:
    """Matrix (nao, nao) of a functional's derivatives (1, 4 or 5, points), times the weights."""
    # phi^T v (phi / 2 + ...) and its transpose: half of the products.
    half = values[0] * (0.5 * weighted[0, :, None])
    for gradient, weight in zip(values[1:], weighted[1:4], strict=True):
        half.addcmul_(gradient, weight[:, None])
    matrix = values[0].T @ half
    for weight in weighted[4:]:
        for gradient in values[1:]:
            matrix += gradient.T @ (gradient * (0.25 * weight[:, None]))
    return matrix + matrix.T


def _total_density(spins: Sequence[_Matrix]) -> _Matrix:
    """Density matrix (nao, nao) of the electrons of all spins."""
    total = spins[0] @ spins[0].T
    for c in spins[1:]:
        total = total + c @ c.T
    return total


def _like(orbitals: Orbitals, matrices: list[np.ndarray]) -> np.ndarray:
    """One matrix where the orbitals are one array, else a stack of them."""
    return matrices[0] if isinstance(orbitals, np.ndarray) else np.array(matrices)
