"""gpu4pyscf as an engine: arrays of CuPy, integrals, functionals and linear algebra on the GPU.

Read in gpu4pyscf 1.8.1 and 1.9.0, and tested in 1.9.0:

==========================================  ====================================================
``scf.hf.SCF`` and its classes              none of PySCF's; ``ROHF`` is a subclass of ``RHF``
``mf.DIIS(mf, file)``, ``update(s, d, f)``  without the SCF object; a subclass of ``lib.diis.DIIS``
``get_init_guess(mol, key)``                without the overlap
``DF(mol).build(omega=)``, ``.loop()``      unpacked blocks of fitted integrals, on the GPU
``DF._cderi``, ``._cderi_idx``              (functions, pairs) for each GPU, or on the host; the
                                            pairs' addresses, and which are of one shell
``numint.eval_ao(mol, coords, 1)``          (4, nao, points) with ``transpose=False``
``with_solvent._B_dot_x``                   potential of the solvent's response to a density
==========================================  ====================================================

CuPy and PyTorch share arrays on the same GPU without a copy (DLPack), and its default stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import cupy
import gpu4pyscf
import numpy as np
import torch
from gpu4pyscf import df, lib
from gpu4pyscf.__config__ import num_devices
from gpu4pyscf.dft import gen_grid, numint
from gpu4pyscf.lib import cupy_helper
from gpu4pyscf.scf import diis, ghf, hf, rohf, uhf
from torch import Tensor

from ..errors import NotEnoughMemoryError, UnsupportedMoleculeError
from ..pyscf_api import attribute, has_exchange
from .host import LINEAR_DEPENDENCY, Engine

if TYPE_CHECKING:
    from pyscf.gto import Mole

_OLDEST = (1, 8)
_GRID_BLOCK = 2**17  # grid points of one block
_ROOM = 0.3  # part of a GPU's memory


class GPU4PySCF(Engine):
    """gpu4pyscf's part of the work, on CuPy's current GPU.

    Raises:
        UnsupportedMoleculeError: it is too old or uses several GPUs, or PyTorch sees none.
    """

    scf: ClassVar[dict[str, Any]] = {"hf": hf, "uhf": uhf, "rohf": rohf, "ghf": ghf, "diis": diis}
    diis_base = lib.diis.DIIS
    fixed = factorizes = True
    stop = 0.4
    goal = 1.0  # its SCF ends without a check
    block_bytes = 2**29
    in_blocks = False
    keeps_pairs = True
    peak = 1.0

    def __init__(self) -> None:
        if tuple(map(int, gpu4pyscf.__version__.split(".")[:2])) < _OLDEST:
            oldest = ".".join(map(str, _OLDEST))
            raise UnsupportedMoleculeError(
                f"gpu4pyscf {gpu4pyscf.__version__} is too old for a guess, which takes {oldest} "
                "or later"
            )
        if not torch.cuda.is_available():
            raise UnsupportedMoleculeError(
                "PyTorch sees no GPU, but gpu4pyscf needs a guess on one: install a build of "
                "PyTorch for CUDA (https://pytorch.org/get-started)"
            )
        if num_devices > 1:  # each has a part of the fitted integrals
            raise UnsupportedMoleculeError(
                f"gpu4pyscf uses {num_devices} GPUs, and a guess serves one: set "
                "CUDA_VISIBLE_DEVICES to one of them"
            )
        self._orthonormal: tuple[Any, Any] | None = None  # an overlap, and vectors

    @property
    def device(self) -> str:  # type: ignore[override]
        return f"cuda:{cupy.cuda.Device().id}"

    def class_of(self, mf: Any) -> str | None:
        # Their matrices are triangles, in a loop of their own.
        if any(cls.__module__.endswith("_lowmem") for cls in type(mf).__mro__):
            return None
        return super().class_of(mf)

    def array(self, x: Any) -> Any:
        return cupy_helper.asarray(x)

    def host(self, x: Any) -> np.ndarray:
        return cupy.asnumpy(x)

    def tensor(self, x: Any, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        return torch.from_dlpack(cupy.ascontiguousarray(cupy_helper.asarray(x))).to(device, dtype)

    def of_tensor(self, x: Tensor) -> Any:
        return cupy.from_dlpack(x.detach().double().contiguous())

    def tagged(self, x: Any, **tags: Any) -> Any:
        return cupy_helper.tag_array(x, **tags)

    # cuSOLVER's generalized solver takes seconds to load for some sizes, and is no faster.

    def _basis(self, overlap: Any) -> Any:
        """Orthonormal vectors in an overlap, (n, n)."""
        known = self._orthonormal  # of all threads
        if known is None or known[0] is not overlap:
            s, u = cupy.linalg.eigh(overlap)
            if not bool(s[0] > LINEAR_DEPENDENCY):
                raise np.linalg.LinAlgError("the overlap is not positive")
            self._orthonormal = known = overlap, u / cupy.sqrt(s)
        return known[1]

    def eigh(self, matrix: Any, overlap: Any) -> tuple[Any, Any]:
        basis = self._basis(overlap)
        energies, rotation = cupy.linalg.eigh(basis.T @ matrix @ basis)
        return energies, basis @ rotation

    def extrapolation(self, overlap: Any) -> Any:
        extrapolation = super().extrapolation(overlap)
        extrapolation.Corth = self._basis(overlap)
        return extrapolation

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        # CuPy's memory, which gpu4pyscf counts and finds again.
        return torch.from_dlpack(cupy.empty(shape, dtype=_CUPY_TYPES[dtype]))

    def solve_positive(self, matrix: Any, right: Any) -> Any:
        values, vectors = cupy.linalg.eigh(matrix)
        keep = values > np.finfo(float).eps * len(values) * values[-1]
        basis = vectors[:, keep] / cupy.sqrt(values[keep])
        return basis @ (basis.T @ right)

    def overlap(self, mol: Mole) -> Any:
        return cupy_helper.asarray(hf.RHF(mol).get_ovlp())

    def cross_overlap(self, mol: Mole, other: Mole) -> Any:
        return cupy_helper.asarray(super().cross_overlap(mol, other))

    def core_hamiltonian(self, mol: Mole) -> Any:
        return cupy_helper.asarray(hf.RHF(mol).get_hcore())

    def has_plain_hcore(self, mf: Any) -> bool:
        return getattr(mf.get_hcore, "__func__", None) is hf.SCF.get_hcore

    def packed_integrals(
        self, mol: Mole, auxiliary: Mole, device: torch.device, dtype: torch.dtype, omega: float
    ) -> Tensor:
        fitted = _fitted(mol, auxiliary)
        with mol.with_range_coulomb(omega), auxiliary.with_range_coulomb(omega):
            fitted.build(omega=omega or None)
        row, column = torch.tril_indices(mol.nao, mol.nao, device=device)
        packed = self.empty((auxiliary.nao, len(row)), dtype, device)
        first = 0
        for block, _ in fitted.loop():
            rows = torch.from_dlpack(block)[:, row, column]
            packed[first : first + len(rows)] = rows
            first += len(rows)
        return packed[:first]

    def own_fit(self, mf: Any) -> Any:
        fitted = attribute(mf, "with_df")
        if fitted is None or mf.only_dfj or fitted.mol is not mf.mol or not fitted._cderi:
            return None
        return fitted if self.keeps_pairs and _is_on_gpu(fitted) else None

    def pair_integrals(
        self, mol: Mole, auxiliary: Mole, omega: float, own: Any = None
    ) -> tuple[Tensor, Tensor, Tensor, Callable[[int], Iterator[Tensor]]] | None:
        fitted = own
        if fitted is None:
            fitted = _fitted(mol, auxiliary)
            with mol.with_range_coulomb(omega), auxiliary.with_range_coulomb(omega):
                fitted.build(omega=omega or None)
            if not _is_on_gpu(fitted):
                raise NotEnoughMemoryError("the fitted integrals do not fit into the GPU's memory")
        values = torch.from_dlpack(fitted._cderi[0].T)
        # Where both orbitals are of the same shell, mn is there and nm as well.
        addresses, both = (torch.from_dlpack(cupy_helper.asarray(x)) for x in fitted._cderi_idx)
        weights = torch.full((len(addresses),), 2.0, dtype=values.dtype, device=values.device)
        weights[both.long()] = 1.0

        def blocks(size: int) -> Iterator[Tensor]:
            for block, _ in fitted.loop(size):
                yield torch.from_dlpack(block).permute(1, 2, 0)

        return values, addresses, weights, blocks

    def fitted_coulomb(self, mol: Mole, auxiliary: Mole, memory: float) -> Callable[[Any], Any]:
        fitted = _fitted(mol, auxiliary)
        fitted.build(build_cderi=False)
        return lambda density: fitted.get_jk(density, with_k=False)[0]

    def grids(self, mol: Mole, size: tuple[int, int]) -> Any:
        grids = gen_grid.Grids(mol)
        grids.verbose, grids.atom_grid = 0, size
        grids.build()
        grids.weights = cupy_helper.asarray(grids.weights)
        grids.coords = cupy_helper.asarray(grids.coords)
        return grids

    def orbital_values(
        self, mol: Mole, grids: Any, device: torch.device, dtype: torch.dtype, first: int
    ) -> Iterator[tuple[slice, Tensor | None, Tensor]]:
        n = len(grids.weights)
        for begin in range(first, n, _GRID_BLOCK):
            points = slice(begin, min(begin + _GRID_BLOCK, n))
            shape = (4, mol.nao, points.stop - begin)
            values = self.empty(shape, dtype, device)
            block = numint.eval_ao(mol, grids.coords[points], deriv=1, transpose=False)
            values.copy_(torch.from_dlpack(block))
            yield points, None, values

    def numint(self) -> Any:
        return numint.NumInt()

    def free_bytes(self, device: torch.device) -> float:
        cupy.get_default_memory_pool().free_all_blocks()
        return super().free_bytes(device)

    def memory(self, mf: Any) -> float:
        return self.free_bytes(torch.device(self.device)) / 1e6

    def make_integrals(self, mf: Any) -> None:
        fitted = attribute(mf, "with_df")
        if fitted is not None and fitted._cderi is None and has_exchange(mf) and not mf.only_dfj:
            fitted.build()

    def solvent_of(self, mf: Any, build: bool = False, keep: bool = True) -> Any:
        solvent: Any = attribute(mf, "with_solvent")
        response = getattr(solvent, "_B_dot_x", None)
        # With a frozen density that is the potential of this one, whatever it is asked for.
        frozen = getattr(solvent, "frozen_dm0_for_finite_difference_without_response", None)
        if response is None or solvent.frozen or frozen is not None or not solvent._intermediates:
            return None
        return response

    def make_room(self) -> None:
        # CuPy keeps what it has freed, and gpu4pyscf takes a third of what is left for one block:
        # PyTorch, which does the same, would wait for memory with each new tensor.
        free, total = torch.cuda.mem_get_info(self.device)
        if free < _ROOM * total:
            self.free_bytes(torch.device(self.device))

    def give_back(self) -> None:
        self._orthonormal = None
        torch.cuda.empty_cache()


_CUPY_TYPES = {torch.float32: np.float32, torch.float64: np.float64}


def _is_on_gpu(fitted: Any) -> bool:
    return isinstance(fitted._cderi[0], cupy.ndarray)


def _fitted(mol: Mole, auxiliary: Mole) -> Any:
    fitted = df.DF(mol)
    fitted.auxmol, fitted.verbose = auxiliary, 0
    return fitted
