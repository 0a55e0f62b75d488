"""Records to tidy frames. Nothing here needs torch."""

from importlib.util import find_spec

from attngrid.core.errors import AttngridError


def can_test() -> bool:
    """Whether SciPy and statsmodels are installed; tables and figures are rendered without."""
    return all(find_spec(name) is not None for name in ("scipy", "statsmodels"))


def require_tests() -> None:
    """Raise where no verdict can be given.

    Raises:
        AttngridError: SciPy or statsmodels is not installed.
    """
    if not can_test():
        raise AttngridError(
            "the verdicts on the claims need SciPy and statsmodels: "
            'pip install "attngrid[evidence]"'
        )
