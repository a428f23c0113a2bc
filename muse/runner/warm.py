"""What the server of the driver's processes imports: papermill, and a page exporter that has compiled its patterns.

Each stage and each page gets a process forked from that server, so what is done here is done once for all of them.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from muse.host.processes import getting_ready
from muse.host.quick_imports import without_grammars


def export_example() -> None:
    """Export a notebook with one cell of each kind."""
    with without_grammars():
        import nbformat
        import papermill  # noqa: F401  (imported for the processes to come)

    from muse.report.export import export_html

    from . import kernels  # noqa: F401  (while the places of modules are still those of the server)

    v4 = nbformat.v4
    output = v4.new_output("stream", text="text\n")
    cells = [v4.new_markdown_cell("# Title\n\n$x$ [text](#a)"), v4.new_code_cell("print(1.0)", outputs=[output])]
    with tempfile.TemporaryDirectory() as folder:
        notebook = Path(folder, "example.ipynb")
        nbformat.write(v4.new_notebook(cells=cells), notebook)
        arguments = {"title": "Title", "links": [("a", "a.html")], "language": "en", "inline_assets": False}
        export_html(notebook, notebook.with_suffix(".html"), **arguments)


with getting_ready(), suppress(Exception):  # whatever is wrong shows again, with its stage, when a page is exported
    export_example()
