"""Optional packages: tables and figures need neither SciPy nor statsmodels, verdicts need both."""

from importlib.util import find_spec

from attngrid.core.errors import AttngridError


def has_statistics() -> bool:
    """Whether SciPy and statsmodels are installed."""
    return all(find_spec(name) is not None for name in ("scipy", "statsmodels"))


def require_statistics() -> None:
    """Check that SciPy and statsmodels are installed.

    Raises:
        AttngridError: one of them is missing.
    """
    if not has_statistics():
        raise AttngridError(
            "the verdicts on the claims need SciPy and statsmodels: "
            'pip install "attngrid[evidence]"'
        )
