"""viser's page without its Google tag, which reports every visit of it (viser 0.2.7, index.html)."""

import functools
import re
import tempfile
from pathlib import Path
from typing import Any

import viser.infra

# lives as long as the process: what is served is read when a browser asks for it
_folder: tempfile.TemporaryDirectory | None = None
_TAG = re.compile(r"<script[^>]*googletagmanager.*?</script>|<script>[^<]*gtag\(.*?</script>", re.DOTALL)


def untracked(root: Path) -> Path:
    """A folder with the files of a built page (links to them) and its index.html without the tag."""
    global _folder
    if _folder is None:
        _folder = tempfile.TemporaryDirectory(prefix="orrery-page-")
        for path in root.iterdir():
            if path.name != "index.html":
                (Path(_folder.name) / path.name).symlink_to(path)
        (Path(_folder.name) / "index.html").write_text(_TAG.sub("", (root / "index.html").read_text()))
    return Path(_folder.name)


def serve_untracked_pages() -> None:
    """Lets every viser server of this process, nerfstudio's viewer too, serve its page without the tag."""
    construct = viser.infra.WebsockServer.__init__
    if hasattr(construct, "__wrapped__"):
        return

    @functools.wraps(construct)
    def construct_untracked(self: Any, *args: Any, http_server_root: Path | None = None, **given: Any):
        root = untracked(http_server_root) if http_server_root is not None else None
        construct(self, *args, http_server_root=root, **given)

    viser.infra.WebsockServer.__init__ = construct_untracked
