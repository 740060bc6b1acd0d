"""What a report measured: models, settings, versions and date."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from stars_engine.calibration.host import Host
from stars_engine.config import SamplingParams

_FIELDS = ("max_tokens", "temperature", "top_k", "top_p", "seed")
_PACKAGES = ("stars-engine", "torch", "transformers")


def provenance(engine: Host, sampling: SamplingParams) -> dict[str, str]:
    """Return what a report measured, by name: models, sampling, versions and date."""
    names = {}
    for name, part in (("language model", engine.config.model), ("reward", engine.config.reward)):
        own = getattr(part, "name_or_path", None) or getattr(part, "function", None)
        names[name] = own if isinstance(own, str) else type(part).__name__
    return {
        **names,
        "sampling": ", ".join(f"{field} {getattr(sampling, field)}" for field in _FIELDS),
        "versions": ", ".join(f"{package} {_version(package)}" for package in _PACKAGES),
        "date": datetime.now(tz=UTC).strftime("%Y-%m-%d"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
