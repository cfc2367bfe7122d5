"""Training: configuration, loss, Lightning modules, and ``python -m pyscf_deqh.train``."""
