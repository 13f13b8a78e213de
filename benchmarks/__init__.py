"""How fast, large and exact this project is, beside the released and the usual ways. Not a part of the package.

From the project's root: ``python -m benchmarks.train``, and so ``evaluate``, ``merge``, ``parts``, ``growth`` and
``estimate``.
"""

from unlearn_pl.console import quiet

quiet()  # before the libraries are imported
