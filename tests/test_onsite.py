"""On-site three-index overlaps against numerical quadrature and Clebsch-Gordan coefficients."""

import numpy as np
import pytest
from e3nn import o3
from pyscf import dft, gto

from pyscf_deqh.graph.onsite import (
    AUXILIARY_COUNTS,
    AUXILIARY_EXPONENTS,
    N_AUXILIARY,
    auxiliary_atom,
    onsite_overlaps,
)


@pytest.fixture(scope="module")
def overlaps(template):
    return onsite_overlaps("def2-svp", template)


def test_auxiliary_functions_are_those_of_the_paper():
    assert AUXILIARY_COUNTS == (16, 8, 4)
    assert N_AUXILIARY == 60
    assert [e[0] for e in AUXILIARY_EXPONENTS] == [128, 32, 4]
    assert [e[-1] for e in AUXILIARY_EXPONENTS] == [128 / 2**15, 32 / 4**7, 4 / 4**3]
    overlap = auxiliary_atom().intor("int1e_ovlp")
    np.testing.assert_allclose(np.diag(overlap), 1.0, atol=1e-12)


@pytest.mark.parametrize("number", [1, 8])
def test_quadrature(template, overlaps, number):
    """The integrals on a grid of one atom, in PySCF's order of functions."""
    atom = gto.M(atom=[(number, (0, 0, 0))], basis="def2-svp", spin=number % 2)
    auxiliary = auxiliary_atom()
    grids = dft.gen_grid.Grids(atom)
    grids.atom_grid, grids.prune = (150, 302), None
    grids.build()
    ao = dft.numint.eval_ao(atom, grids.coords)
    aux = dft.numint.eval_ao(auxiliary, grids.coords)
    expected = np.einsum("g,gi,gj,gk->ijk", grids.weights, ao, ao, aux, optimize=True)
    # Of every p shell PySCF has x, y, z, the result y, z, x.
    p_start, p_stop = AUXILIARY_COUNTS[0], AUXILIARY_COUNTS[0] + 3 * AUXILIARY_COUNTS[1]
    p = expected[..., p_start:p_stop].reshape(*expected.shape[:2], -1, 3)
    expected[..., p_start:p_stop] = p[..., [1, 2, 0]].reshape(*expected.shape[:2], -1)
    slots = template.slots(number)
    element = template.numbers.index(number)
    ours = overlaps[element][np.ix_(slots, slots)]
    # Functions with exponents down to 0.004 reach beyond the grid where they meet no AO.
    np.testing.assert_allclose(ours, expected, atol=1e-7)
    unused = np.setdiff1d(np.arange(template.size), slots)
    assert not overlaps[element][unused].any()


def test_proportional_to_clebsch_gordan_coefficients(template, overlaps):
    """Wigner-Eckart: each triple of shells is one number times the 3j symbols (Eq. 33)."""
    shells = template.template_shells
    starts = np.cumsum([0] + [2 * l + 1 for l in shells])
    oxygen = overlaps[template.numbers.index(8)]
    found = 0
    for a, l1 in zip(starts, shells, strict=False):
        for b, l2 in zip(starts, shells, strict=False):
            k = 0
            for l, count in enumerate(AUXILIARY_COUNTS):
                for _ in range(count):
                    block = oxygen[a : a + 2 * l1 + 1, b : b + 2 * l2 + 1, k : k + 2 * l + 1]
                    k += 2 * l + 1
                    if not abs(l1 - l2) <= l <= l1 + l2:
                        np.testing.assert_allclose(block, 0, atol=1e-12)
                        continue
                    symbols = o3.wigner_3j(l1, l2, l).double().numpy()
                    scale = (block * symbols).sum()
                    np.testing.assert_allclose(block, scale * symbols, atol=1e-6)
                    found += abs(scale) > 1e-3
    assert found > 100
