"""The cheap SCF: fitted Fock matrices and cycles in them. Knows no network and no plug-in."""
