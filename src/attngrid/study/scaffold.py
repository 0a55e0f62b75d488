"""``attngrid init`` makes a folder for a user's own study, outside this repository."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from attngrid.core.errors import ConfigError
from attngrid.core.files import home


def init(folder: Path) -> list[Path]:
    """Make a study folder with a working example of everything that a user can add.

    Returns:
        The files in the new folder; the study has the folder's name.

    Raises:
        ConfigError: the folder is not empty, its name cannot be a study's name, or no checkout of
            attngrid is found.
    """
    study = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_")
    if not study or len(study) > 40:
        raise ConfigError(
            f"{folder}: its name is the study's name: found {folder.resolve().name!r}, "
            "needs 1 to 40 letters and digits"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not empty; nothing was written")
    checkout = home().resolve()
    if not (checkout / "Snakefile").is_file():
        raise ConfigError(
            f"{checkout}: found no Snakefile; needs a checkout of attngrid: run this command in "
            "one, or set ATTNGRID_HOME to its path"
        )
    template, caches = Path(__file__).with_name("study_folder"), shutil.ignore_patterns("__py*")
    shutil.copytree(template, folder, dirs_exist_ok=True, ignore=caches)
    (folder / "gitignore").rename(folder / ".gitignore")
    shutil.copytree(checkout / "workflow/profiles", folder / "profiles")
    for name in ("Snakefile", "study.yaml", "README.md"):
        text = (folder / name).read_text("utf-8")
        text = text.replace("@STUDY@", study).replace("@ATTNGRID@", str(checkout))
        (folder / name).write_text(text, "utf-8")
    return sorted(file for file in folder.rglob("*") if file.is_file())
