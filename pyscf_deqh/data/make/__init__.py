"""Makes geometries and labels: embedding, dynamics, Hamiltonians, published sets."""
