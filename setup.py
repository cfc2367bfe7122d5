from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = next(
    line.split('"')[1]
    for line in (here / "pyscf_deqh" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

train = [
    # WeightAveraging came with 2.6. Releases 2.6.2 and 2.6.3 carried malware
    # (GHSA-w37p-236h-pfx3) and must never be installed.
    "lightning>=2.6,<3,!=2.6.2,!=2.6.3",
    "jsonargparse[signatures]>=4.49",
    "pyyaml>=6",
    "tensorboard>=2.14",
    "torch>=2.9",  # Muon
]
plot = ["matplotlib>=3.7"]
md17 = ["ase>=3.22"]
# Connections between this process and its workers are encrypted by cryptography's certificates.
cluster = ["distributed>=2024.12", "dask-jobqueue>=0.9", "cryptography>=42"]
screen = [*cluster, "pyarrow>=17"]
# ASE has announced that it will remove `fixcm`, which the thermostat has to be told.
md = ["ase>=3.23,<3.30", "tblite>=0.4", *cluster]
embed = [*md, "rdkit>=2023.9"]
# pyberny brings the molecules of two benchmarks.
geomopt = ["geometric>=1.0", "pyberny>=0.7"]
pyg = ["torch_geometric>=2.6"]
docs = ["sphinx>=8.1", "myst-nb>=1.1", "furo>=2024.8.6"]
gpu = ["gpu4pyscf-cuda12x>=1.8"]
pytest = ["hypothesis>=6.100", "pytest>=8", "pytest-xdist>=3.8"]

setup(
    name="pyscf_deqh",
    version=version,
    description="DEQHNet for PySCF: initial guesses from a network that solves for the Hamiltonian",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    project_urls={"Paper": "https://arxiv.org/abs/2406.03794", "PySCF": "https://pyscf.org"},
    python_requires=">=3.10",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Chemistry",
        "Typing :: Typed",
    ],
    packages=[*find_packages(include=["pyscf_deqh", "pyscf_deqh.*"]), "pyscf_deqh.models"],
    # The bundled models lie at the top of the repository and inside the installed package.
    package_dir={"pyscf_deqh.models": "models"},
    package_data={
        "pyscf_deqh": ["py.typed", "benchmark/molecules/*.xyz*", "data/make/molecules/*.xyz"],
        "pyscf_deqh.models": ["*/config.json", "*/model.safetensors", "*/README.md", "*/*.smi"],
    },
    exclude_package_data={"pyscf_deqh.models": ["training-data/*"]},
    install_requires=[
        "pyscf>=2.8",
        "torch>=2.6",  # before, weights_only=True could run code (CVE-2025-32434)
        "e3nn>=0.5.1",
        "torchdeq>=0.1.0",
        "safetensors>=0.4.3",
        "numpy>=1.26",
        "scipy>=1.11",
        "tqdm>=4.60",
        "threadpoolctl>=3.1",
    ],
    extras_require={
        "train": train,
        "plot": plot,
        "md": md,
        "embed": embed,
        "geomopt": geomopt,
        "gpu": gpu,
        "docs": docs,
        "pyg": pyg,
        "md17": md17,
        "cluster": cluster,
        "screen": screen,
        "download": ["gdown>=5"],
        "test": [*train, *plot, *embed, *geomopt, *pyg, *screen, *pytest],
        "dev": [
            *train,
            *plot,
            *embed,
            *geomopt,
            *pyg,
            *screen,
            *docs,
            *pytest,
            "build>=1.2",
            "ruff>=0.6",
            "mypy>=1.10",
            "import-linter>=2.10",
            "types-PyYAML",
            "types-tqdm",
        ],
    },
)
