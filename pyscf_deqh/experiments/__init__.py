"""The paper's tables and figures, one command each: ``python -m pyscf_deqh.experiments NAME``."""
