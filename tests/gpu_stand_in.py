"""CuPy and gpu4pyscf for machines without a GPU: as strict as they are, but on NumPy and PySCF.

Arrays convert to NumPy's only where they are asked to and mix with none, as CuPy's do. The SCF
loop, its classes, and how it calls a guess and a DIIS are gpu4pyscf's (read in 1.9.0); integrals
are PySCF's.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import scipy.linalg
import torch
from numpy.lib.mixins import NDArrayOperatorsMixin
from pyscf import df as df_cpu
from pyscf import dft, lib, scf
from pyscf.scf import diis as diis_cpu

# Of NumPy's functions, CuPy has no such ones, or with other arguments.
_MISSING = {"block", "pinv", "fill_diagonal"}


def unwrap(x):
    if isinstance(x, ndarray):
        return x.values
    if isinstance(x, np.ndarray) and x.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(x, (list, tuple)):
        return type(x)(unwrap(y) for y in x)
    return {k: unwrap(v) for k, v in x.items()} if isinstance(x, dict) else x


def wrap(x):
    if isinstance(x, (np.ndarray, np.generic)):
        return ndarray(np.asarray(x))
    return type(x)(wrap(y) for y in x) if type(x) in (list, tuple) else x


class ndarray(NDArrayOperatorsMixin):
    """An array that does not turn into NumPy's by itself."""

    def __init__(self, values, **tags):
        self.values = np.asarray(values)
        self.__dict__.update(tags)

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        assert method == "__call__", method
        out = kwargs.pop("out", None)
        result = getattr(ufunc, method)(*unwrap(inputs), **unwrap(kwargs))
        if out is None:
            return wrap(result)
        out[0].values[...] = result
        return out[0]

    def __array_function__(self, func, types, args, kwargs):
        if func.__name__ in _MISSING:
            return NotImplemented
        result = func(*unwrap(args), **unwrap(kwargs))
        return wrap(tuple(result)) if isinstance(result, tuple) else wrap(result)

    def __dlpack__(self, **kwargs):
        return self.values.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()

    def __getitem__(self, key):
        return wrap(self.values[unwrap(key)])

    def __setitem__(self, key, value):
        self.values[unwrap(key)] = unwrap(value)

    def __float__(self):
        return float(self.values)

    def __bool__(self):
        return bool(self.values)

    def __int__(self):
        return int(self.values)

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return (wrap(x) for x in self.values)

    def get(self):
        return self.values.copy()

    def view(self, cls):
        return cls(self.values)

    @property
    def T(self):
        return wrap(self.values.T)

    @property
    def real(self):
        return wrap(self.values.real)

    shape = property(lambda self: self.values.shape)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)
    dtype = property(lambda self: self.values.dtype)
    nbytes = property(lambda self: self.values.nbytes)


def _method(name):
    def call(self, *args, **kwargs):
        return wrap(getattr(self.values, name)(*unwrap(args), **unwrap(kwargs)))

    return call


for _name in ("all", "any", "astype", "conj", "copy", "dot", "max", "min", "ravel", "reshape",
              "sum", "swapaxes", "trace", "transpose", "diagonal"):  # fmt: skip
    setattr(ndarray, _name, _method(_name))


def asarray(x, **kwargs):
    return ndarray(x.values if isinstance(x, ndarray) else np.asarray(x), **kwargs)


def asnumpy(x):
    return x.get() if isinstance(x, ndarray) else np.asarray(x)


def tag_array(x, **tags):
    if isinstance(x, (list, tuple)):
        x = np.stack([y.values for y in x])
    tagged = asarray(x)
    if isinstance(x, ndarray):
        vars(tagged).update(vars(x))
    vars(tagged).update(tags)
    return tagged


def _module(name, **contents):
    module = ModuleType(name)
    vars(module).update(contents)
    module.__spec__ = SimpleNamespace(name=name, _initializing=False)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    return module


class LibDIIS:
    """``gpu4pyscf.lib.diis.DIIS``."""

    def __init__(self, dev=None, filename=None, incore=None):
        self.verbose, self.stdout, self.space = 0, sys.stdout, 6
        assert filename is None


class CDIIS(LibDIIS):
    def __init__(self, mf=None, filename=None):
        super().__init__(mf, filename)
        self.rollback, self.Corth, self.space = False, None, 8
        self._own = diis_cpu.CDIIS()
        self._own.verbose = 0

    def update(self, s, d, f, *args, **kwargs):
        assert all(type(x) is ndarray for x in (s, d, f))
        assert not args
        assert self.Corth is not None  # or a solver is called that takes seconds to load
        return wrap(self._own.update(s.values, d.values, f.values))


class _NumInt:
    """``gpu4pyscf.dft.numint.NumInt``."""

    libxc = dft.libxc
    omega = None
    _own = dft.numint.NumInt()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._own, name)

    def eval_xc_eff(self, xc, rho, deriv=1, xctype=None):
        return wrap(list(self._own.eval_xc_eff(xc, rho.values, deriv, xctype=xctype)[:2]))

    def nr_rks(self, mol, grids, xc, dm, max_memory=2000):
        n, exc, vxc = self._own.nr_rks(mol, grids.own, xc, dm.values)
        return n, exc, wrap(vxc)

    def nr_uks(self, mol, grids, xc, dm, max_memory=2000):
        n, exc, vxc = self._own.nr_uks(mol, grids.own, xc, dm.values)
        return n, exc, wrap(vxc)


class _Grids:
    def __init__(self, mol):
        self.own = dft.gen_grid.Grids(mol)
        self.own.verbose = 0
        self.level, self.coords, self.weights = self.own.level, None, None

    def build(self):
        if hasattr(self, "atom_grid"):
            self.own.atom_grid = self.atom_grid
        self.own.build()
        self.coords, self.weights = wrap(self.own.coords), wrap(self.own.weights)
        return self


def eval_ao(mol, coords, deriv=0, transpose=True):
    values = dft.numint.eval_ao(mol, coords.values, deriv=deriv)
    return wrap(values if transpose else np.ascontiguousarray(values.transpose(0, 2, 1)))


class DF:
    """``gpu4pyscf.df.DF``: rows of the tensor are not in the order of the auxiliary functions, nor
    its columns in that of pairs; both orders of two orbitals of a shell are there."""

    def __init__(self, mol, auxbasis=None):
        self.mol, self.auxmol, self._cderi, self.auxbasis = mol, None, None, auxbasis

    def build(self, *, omega=None, build_cderi=True):
        if self.auxmol is None:
            self.auxmol = df_cpu.addons.make_auxmol(self.mol, self.auxbasis)
        assert (omega or 0) == self.mol.omega == self.auxmol.omega
        self._own = df_cpu.DF(self.mol)
        self._own.auxmol = self.auxmol
        if build_cderi:
            packed = df_cpu.incore.cholesky_eri(self.mol, auxmol=self.auxmol)[::-1]
            square = lib.unpack_tril(np.ascontiguousarray(packed)).reshape(len(packed), -1)
            shell = np.repeat(np.arange(self.mol.nbas), np.diff(self.mol.ao_loc_nr()))
            row, column = np.nonzero((shell[:, None] >= shell).T)
            addresses = row * self.mol.nao + column
            self._cderi = [wrap(np.ascontiguousarray(square[:, addresses].T).T)]
            self._cderi_idx = wrap(addresses), wrap(np.nonzero(shell[row] == shell[column])[0])
        return self

    def loop(self, blksize=None, unpack=True):
        nao = self.mol.nao
        square = np.zeros((len(self._cderi[0]), nao, nao))
        row, column = divmod(self._cderi_idx[0].values, nao)
        square[:, row, column] = square[:, column, row] = self._cderi[0].values
        work = np.zeros((nao, nao, blksize or 100))
        for first in range(0, len(square), work.shape[2]):
            rows = square[first : first + work.shape[2]]
            block = work[:, :, : len(rows)]
            block[...] = rows.transpose(1, 2, 0)
            yield wrap(block.transpose(2, 0, 1)), None

    def get_jk(self, dm, hermi=1, with_j=True, with_k=True):
        j, k = self._own.get_jk(dm.values, hermi, with_j, with_k)
        return wrap(j), wrap(k)


class SCF(lib.StreamObject):
    """``gpu4pyscf.scf.hf.SCF``: none of PySCF's."""

    DIIS = CDIIS
    conv_tol, conv_tol_grad, max_cycle, max_memory = 1e-9, None, 50, 4000
    diis, diis_space, diis_file, diis_start_cycle, diis_space_rollback = True, 8, None, 1, 0
    damp = level_shift = None
    diis_damp = 0
    init_guess = "minao"
    init_guess_breaksym = 0
    chkfile = None
    _keys = {"mol", "init_guess", "DIIS", "xc", "grids", "with_df", "diis_start_cycle"}  # noqa: RUF012

    def __init__(self, mol):
        self.mol, self.verbose, self.stdout = mol, mol.verbose, mol.stdout
        name = type(self).__name__
        self.own = getattr(
            getattr(scf, name.lower().replace("ks", "hf")), name.replace("KS", "HF")
        )(mol)
        self.converged, self.mo_coeff, self.cycles = False, None, 0

    def reset(self, mol):
        self.mol = mol
        self.own.reset(mol)

    def get_init_guess(self, mol=None, key="minao", **kwargs):
        if not isinstance(key, str):
            return key
        return self.init_guess_by_minao(mol)

    def init_guess_by_minao(self, mol=None):
        dm = self.own.get_init_guess(mol, "minao")
        return ndarray(np.asarray(dm))

    def get_ovlp(self, mol=None):
        return wrap(self.own.get_ovlp(mol))

    def get_hcore(self, mol=None):
        return wrap(self.own.get_hcore(mol))

    def get_veff(self, mol, dm):
        return wrap(np.asarray(self.own.get_veff(mol, asnumpy(dm))))

    def check_linear_dependency(self, s, verbose=None):
        e, v = np.linalg.eigh(s.values)
        return wrap(v / np.sqrt(e))

    def eig(self, h, s, overwrite=False, x=None):
        if x is None:
            return wrap(scipy.linalg.eigh(h.values, s.values))
        e, c = np.linalg.eigh(x.values.T @ h.values @ x.values)
        return wrap(e), wrap(x.values @ c)

    def get_occ(self, mo_energy=None, mo_coeff=None):
        return wrap(self.own.get_occ(mo_energy.values))

    def make_rdm1(self, mo_coeff=None, mo_occ=None):
        mo_coeff = self.mo_coeff if mo_coeff is None else mo_coeff
        mo_occ = self.mo_occ if mo_occ is None else mo_occ
        dm = self.own.make_rdm1(mo_coeff.values, mo_occ.values)
        return ndarray(np.asarray(dm), mo_coeff=mo_coeff, mo_occ=mo_occ)

    def get_fock(self, h1e=None, s1e=None, vhf=None, dm=None, cycle=-1, diis=None,
                 level_shift_factor=None):  # fmt: skip
        if vhf is None:
            h1e, s1e, vhf = self.get_hcore(), self.get_ovlp(), self.get_veff(self.mol, dm)
        f = h1e + vhf
        if diis is not None and cycle >= self.diis_start_cycle:
            f = diis.update(s1e, asarray(dm), f)
        return f

    def build(self, mol=None):
        return self

    def energy_tot(self, dm, h1e, vhf):
        return self.own.energy_tot(dm.values, h1e.values, self._tagged_veff(dm))

    def kernel(self, dm0=None, **kwargs):
        """As ``gpu4pyscf.scf.hf._kernel``; counts its Fock matrices in ``builds``."""
        mol, tolerance = self.mol, self.conv_tol_grad or self.conv_tol**0.5
        dm = self.get_init_guess(mol, self.init_guess) if dm0 is None else dm0
        dm = asarray(dm) if isinstance(dm, np.ndarray) else dm
        assert type(dm) is ndarray
        dm = tag_array(dm)
        vhf, h1e, s1e = self.get_veff(mol, dm), self.get_hcore(), self.get_ovlp()
        self.builds, last = 1, np.inf
        x = self.check_linear_dependency(s1e)
        assert issubclass(self.DIIS, LibDIIS)
        mf_diis = self.DIIS(self, self.diis_file)
        mf_diis.space, mf_diis.rollback = self.diis_space, self.diis_space_rollback
        mf_diis.Corth = x
        for cycle in range(self.max_cycle):
            fock = self.get_fock(h1e, s1e, vhf, dm, cycle, mf_diis)
            mo_energy, mo_coeff = self.eig(fock, s1e, x=x)
            mo_occ = self.get_occ(mo_energy, mo_coeff)
            dm = self.make_rdm1(mo_coeff, mo_occ)
            vhf = self.get_veff(mol, dm)
            self.builds += 1
            dm = asarray(dm)
            fock = self.get_fock(h1e, s1e, vhf, dm)
            self.e_tot = self.own.energy_tot(dm.values, h1e.values, self._tagged_veff(dm))
            gradient = self.own.get_grad(mo_coeff.values, mo_occ.values, self._host_fock(fock))
            self.cycles = cycle + 1
            if abs(self.e_tot - last) < self.conv_tol and np.linalg.norm(gradient) < tolerance:
                self.converged = True
                break
            last = self.e_tot
        self.mo_energy, self.mo_coeff, self.mo_occ = mo_energy, mo_coeff, mo_occ
        return self.e_tot

    def _tagged_veff(self, dm):
        return self.own.get_veff(self.mol, dm.values)

    def _host_fock(self, fock):
        return fock.values


class RHF(SCF):
    get_occ = SCF.get_occ


class UHF(SCF):
    @property
    def nelec(self):
        return self.mol.nelec

    def get_fock(self, *args, level_shift_factor=None, **kwargs):
        f = super().get_fock(*args, **kwargs)
        return f if level_shift_factor is None else tuple(f)

    def eig(self, h, s, overwrite=False, x=None):
        pairs = [super(UHF, self).eig(f, s, overwrite, x) for f in h]
        return tuple(wrap(np.stack([p[i].values for p in pairs])) for i in (0, 1))

    def get_occ(self, mo_energy=None, mo_coeff=None):
        return wrap(np.asarray(self.own.get_occ(mo_energy.values, mo_coeff.values)))


class ROHF(RHF):
    nelec = UHF.nelec

    def init_guess_by_minao(self, mol=None):
        """PySCF's own, and its arrays."""
        return self.own.init_guess_by_minao(mol)

    def eig(self, h, s, overwrite=False, x=None):
        e, c = super().eig(h, s, overwrite, x)
        alpha = np.einsum("pi,pi->i", c.values, h.focka.values @ c.values)
        beta = np.einsum("pi,pi->i", c.values, h.fockb.values @ c.values)
        return ndarray(e.values, mo_ea=wrap(alpha), mo_eb=wrap(beta)), c

    def get_occ(self, mo_energy=None, mo_coeff=None):
        energies = lib.tag_array(mo_energy.values, mo_ea=mo_energy.mo_ea.values,
                                 mo_eb=mo_energy.mo_eb.values)  # fmt: skip
        return wrap(np.asarray(self.own.get_occ(energies)))

    def get_fock(self, h1e=None, s1e=None, vhf=None, dm=None, cycle=-1, diis=None,
                 level_shift_factor=None):  # fmt: skip
        if vhf is None:
            h1e, s1e, vhf = self.get_hcore(), self.get_ovlp(), self.get_veff(self.mol, dm)
        focka, fockb = h1e + vhf[0], h1e + vhf[1]
        f = roothaan((focka, fockb), dm, s1e)
        if diis is not None and cycle >= self.diis_start_cycle:
            f = diis.update(s1e, dm[0] + dm[1], f)
        return tag_array(f, focka=focka, fockb=fockb)

    def _host_fock(self, fock):
        return lib.tag_array(fock.values, focka=fock.focka.values, fockb=fock.fockb.values)


class GHF(SCF):
    def get_init_guess(self, mol=None, key="minao", **kwargs):
        """What RHF makes, half of it for each spin."""
        dm = RHF.get_init_guess(self, mol, key, **kwargs)
        return wrap(np.kron(np.eye(2) / 2, dm.values))

    def init_guess_by_minao(self, mol=None):
        return ndarray(scf.hf.init_guess_by_minao(self.mol if mol is None else mol))


def roothaan(focks, densities, overlap):
    f = scf.rohf.get_roothaan_fock([x.values for x in focks],
                                   [x.values for x in densities], overlap.values)  # fmt: skip
    return tag_array(wrap(np.asarray(f)), focka=focks[0], fockb=focks[1])


class _KohnSham:
    def __init__(self, mol, xc="LDA,VWN"):
        super().__init__(mol)
        name = type(self).__name__
        self.own = getattr(getattr(dft, name.lower()), name)(mol)
        self._numint, self.grids = _NumInt(), _Grids(mol)
        self.xc = self.own.xc = xc


class RKS(_KohnSham, RHF):
    pass


class UKS(_KohnSham, UHF):
    pass


class ROKS(_KohnSham, ROHF):
    pass


def _eigh(a, b):
    return wrap(scipy.linalg.eigh(a.values, b.values))


def install(monkeypatch, version="1.9.0"):
    """Put the stand-ins into ``sys.modules``; :func:`remove` takes them out again."""
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    cupy = _module(
        "cupy", ndarray=ndarray, asarray=asarray, asnumpy=asnumpy, sqrt=np.sqrt,
        ascontiguousarray=lambda x: wrap(np.ascontiguousarray(x.values)), isfinite=np.isfinite,
        from_dlpack=lambda x: wrap(np.from_dlpack(x)), get_default_memory_pool=lambda: pool,
        empty=lambda shape, dtype: wrap(np.empty(shape, dtype)),
        cuda=SimpleNamespace(Device=lambda: SimpleNamespace(id=0, synchronize=lambda: None)),
        __version__="14",
    )  # fmt: skip
    cupy.linalg = SimpleNamespace(eigh=lambda x: wrap(tuple(np.linalg.eigh(x.values))))
    _module("gpu4pyscf", __version__=version)
    _module("gpu4pyscf.__config__", num_devices=1)
    _module("gpu4pyscf.lib", diis=SimpleNamespace(DIIS=LibDIIS))
    _module("gpu4pyscf.lib.cupy_helper", asarray=asarray, tag_array=tag_array, eigh=_eigh)
    _module("gpu4pyscf.df", DF=DF)
    _module("gpu4pyscf.dft", RKS=RKS, UKS=UKS, ROKS=ROKS)
    _module("gpu4pyscf.dft.gen_grid", Grids=_Grids)
    _module("gpu4pyscf.dft.numint", NumInt=_NumInt, eval_ao=eval_ao)
    _module("gpu4pyscf.scf")
    _module("gpu4pyscf.scf.diis", CDIIS=CDIIS, SCF_DIIS=CDIIS)
    module = _module("gpu4pyscf.scf.hf", SCF=SCF, RHF=RHF)
    _module("gpu4pyscf.scf.uhf", UHF=UHF)
    _module("gpu4pyscf.scf.rohf", ROHF=ROHF, get_roothaan_fock=roothaan)
    _module("gpu4pyscf.scf.ghf", GHF=GHF)
    for cls, name in ((SCF, "hf"), (RHF, "hf"), (UHF, "uhf"), (ROHF, "rohf"), (GHF, "ghf")):
        cls.__module__ = f"gpu4pyscf.scf.{name}"
        for method in {"get_occ", "get_fock"} & vars(cls).keys():
            vars(cls)[method].__module__ = f"gpu4pyscf.scf.{name}"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10**10, 10**10))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "stand-in")
    return module


def remove():
    for name in list(sys.modules):
        if name.partition(".")[0] in ("cupy", "gpu4pyscf"):
            del sys.modules[name]
    sys.modules.pop("pyscf_deqh.engine.gpu", None)
