"""What every test runs under: shapes checked at run time, and one torch thread."""

import os

from jaxtyping import install_import_hook

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before jax, which some tests import first: a line a cached program

# Before robostack is imported: from here on every annotation in it is checked at each call.
# The numeric tower lets an int stand where a float is asked for, as type checkers do.
install_import_hook("robostack", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import torch  # noqa: E402

torch.set_num_threads(1)  # results that do not depend on the machine's cores, and no contest between parallel runs
