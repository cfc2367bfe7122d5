"""Sphinx: ``make docs``. Warnings are errors."""

import pyscf_deqh

project = "pyscf_deqh"
author = "The pyscf_deqh developers"
release = pyscf_deqh.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "results"]
html_theme = "furo"
html_title = f"pyscf_deqh {release}"

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
# The tutorial runs each time: what it prints is what the code prints.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
