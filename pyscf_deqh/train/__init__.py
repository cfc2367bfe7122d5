"""Training: configuration, loss, Lightning modules, and the command ``python -m pyscf_deqh.train``."""
