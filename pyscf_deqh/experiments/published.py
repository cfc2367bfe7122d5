"""Figures of Wang et al. (NeurIPS 2024): Tables 1-4, typed from the paper.

Energies and matrix elements in micro-hartree, cosine similarities in 10^-2, as printed.
"""

from __future__ import annotations

# Table 1 (MD17): MAE of H, MAE of the occupied orbital energies, cosine similarity.
TABLE1: dict[str, dict[str, tuple[float, ...]]] = {
    "water": {"qhnet": (10.79, 33.76, 99.99), "deqhnet": (36.07, 335.86, 99.99)},
    "ethanol": {"qhnet": (20.91, 81.03, 99.99), "deqhnet": (18.73, 106.94, 100.00)},
    "malondialdehyde": {"qhnet": (21.52, 82.12, 99.92), "deqhnet": (17.97, 93.79, 99.90)},
    "uracil": {"qhnet": (20.12, 113.44, 99.89), "deqhnet": (15.07, 107.49, 99.89)},
}

# Table 2 (QH9): MAE of H in diagonal blocks, in the others, in all; then as in Table 1.
TABLE2: dict[str, dict[str, tuple[float, ...]]] = {
    "stable-id": {
        "qhnet": (111.21, 73.68, 76.31, 798.51, 95.85),
        "deqhnet": (96.43, 58.75, 61.42, 4383.10, 99.84),
    },
    "stable-ood": {
        "qhnet": (111.72, 69.88, 72.11, 644.17, 93.68),
        "deqhnet": (81.01, 51.66, 53.23, 5657.07, 99.80),
    },
    "dynamic-geo": {
        "qhnet": (149.62, 92.88, 96.85, 834.47, 94.45),
        "deqhnet": (84.97, 60.04, 62.14, 1864.06, 99.92),
    },
    "dynamic-mol": {
        "qhnet": (416.99, 153.68, 173.92, 9719.58, 79.15),
        "deqhnet": (210.76, 97.18, 105.80, 4625.88, 99.80),
    },
}

# Table 3: (mean, standard deviation) of each ratio by training set, initial guess and model.
TABLE3 = {
    "stable-id": {
        "1e": {
            "optimal_ratio": {"qhnet": (0.057, 0.004), "deqhnet": (0.060, 0.004)},
            "achieved_ratio": {"qhnet": (0.395, 0.030), "deqhnet": (0.363, 0.074)},
            "error_level_ratio": {"qhnet": (0.635, 0.039), "deqhnet": (0.683, 0.039)},
        },
        "minao": {
            "optimal_ratio": {"qhnet": (0.102, 0.005), "deqhnet": (0.113, 0.006)},
            "achieved_ratio": {"qhnet": (0.706, 0.031), "deqhnet": (0.681, 0.129)},
            "error_level_ratio": {"qhnet": (0.408, 0.025), "deqhnet": (0.459, 0.031)},
        },
    },
    "stable-ood": {
        "1e": {
            "optimal_ratio": {"qhnet": (0.057, 0.004), "deqhnet": (0.060, 0.004)},
            "achieved_ratio": {"qhnet": (0.400, 0.030), "deqhnet": (0.359, 0.031)},
            "error_level_ratio": {"qhnet": (0.620, 0.037), "deqhnet": (0.678, 0.038)},
        },
        "minao": {
            "optimal_ratio": {"qhnet": (0.102, 0.005), "deqhnet": (0.113, 0.006)},
            "achieved_ratio": {"qhnet": (0.715, 0.033), "deqhnet": (0.674, 0.045)},
            "error_level_ratio": {"qhnet": (0.406, 0.021), "deqhnet": (0.454, 0.029)},
        },
    },
    "dynamic-geo": {
        "1e": {
            "optimal_ratio": {"qhnet": (0.056, 0.006), "deqhnet": (0.056, 0.006)},
            "achieved_ratio": {"qhnet": (0.392, 0.036), "deqhnet": (0.373, 0.037)},
            "error_level_ratio": {"qhnet": (0.648, 0.041), "deqhnet": (0.673, 0.037)},
        },
        "minao": {
            "optimal_ratio": {"qhnet": (0.098, 0.008), "deqhnet": (0.098, 0.008)},
            "achieved_ratio": {"qhnet": (0.679, 0.041), "deqhnet": (0.646, 0.043)},
            "error_level_ratio": {"qhnet": (0.443, 0.044), "deqhnet": (0.475, 0.050)},
        },
    },
    "dynamic-mol": {
        "1e": {
            "optimal_ratio": {"qhnet": (0.056, 0.006), "deqhnet": (0.056, 0.006)},
            "achieved_ratio": {"qhnet": (0.512, 0.138), "deqhnet": (0.426, 0.081)},
            "error_level_ratio": {"qhnet": (0.622, 0.048), "deqhnet": (0.644, 0.048)},
        },
        "minao": {
            "optimal_ratio": {"qhnet": (0.098, 0.008), "deqhnet": (0.098, 0.008)},
            "achieved_ratio": {"qhnet": (0.882, 0.217), "deqhnet": (0.736, 0.128)},
            "error_level_ratio": {"qhnet": (0.406, 0.066), "deqhnet": (0.436, 0.050)},
        },
    },
}

# Sec. 5.3: SCF iterations of PySCF for uracil, and where DEQHNet settles.
FIG4A = {"pyscf_cycles": "15", "deqhnet_iterations": "2-3"}


def error_pairs() -> dict[str, dict[str, tuple[float, float]]]:
    """(MAE of H, MAE of occupied energies) of QHNet and DEQHNet by data set (Tables 1 and 2)."""
    pairs = {
        name: {model: (row[0], row[1]) for model, row in models.items()}
        for name, models in TABLE1.items()
    }
    for name, models in TABLE2.items():
        pairs[name] = {model: (row[2], row[3]) for model, row in models.items()}
    return pairs
