"""``attngrid init`` makes a folder for a user's own study."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from attngrid.core.errors import ConfigError
from attngrid.core.files import home

IN_A_STUDY_FOLDER = """\
> This is a page of attngrid's repository. In your folder, `snakemake --cores all` runs
> `study.yaml`, not the demo. Of the files in the first table only `cluster.yaml` is here; the
> others are in the repository, as are `docs/` and `workflow/tables/`.
"""


def init(folder: Path) -> list[Path]:
    """Make a study folder with a working example of everything that a user can add.

    Returns:
        The files in the new folder; the study has the folder's name.

    Raises:
        ConfigError: the folder is not empty, or its name cannot be a study's name.
    """
    study = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_")
    if not study or len(study) > 40:
        raise ConfigError(
            f"{folder}: its name is the study's name: found {folder.resolve().name!r}, "
            "needs 1 to 40 letters and digits"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not empty; nothing was written")
    template, caches = Path(__file__).with_name("study_folder"), shutil.ignore_patterns("__py*")
    shutil.copytree(template, folder, dirs_exist_ok=True, ignore=caches)
    (folder / "gitignore").rename(folder / ".gitignore")
    shutil.copytree(home() / "workflow/profiles", folder / "profiles")
    for profile in folder.glob("profiles/*/config.yaml"):
        text = re.sub(r"#[^\n]*\nconfigfile: .*\n", "", profile.read_text("utf-8"))
        profile.write_text(text.replace("workflow/profiles/", "profiles/"), "utf-8")
    (folder / "slurm").symlink_to("profiles/slurm")  # for --profile slurm
    (folder / "config").mkdir()
    shutil.copy(home() / "config/cluster.yaml", folder / "config")
    heading, _, text = (home() / "config/README.md").read_text("utf-8").partition("\n")
    (folder / "config/README.md").write_text(f"{heading}\n\n{IN_A_STUDY_FOLDER}{text}", "utf-8")
    for name in ("study.yaml", "claims.yaml", "README.md"):
        text = (folder / name).read_text("utf-8")
        (folder / name).write_text(text.replace("@STUDY@", study), "utf-8")
    return sorted(file for file in folder.rglob("*") if file.is_file())
