"""What `mkdocs` cannot take from docs/ (`make docs`): pages of files beside it, the API and the kernels.

Each public name, which is one in an ``__all__`` of `PARTS`, gets a page that mkdocstrings fills from its docstring. The
package is read and not imported: the site needs no torch.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: A public module -> its page, in api/.
PARTS = {
    "pykernels": "pykernels.md",
    "pykernels.ops": "pykernels.ops.md",
    "pykernels.nn": "pykernels.nn.md",
    "pykernels.models": "pykernels.models.md",
    "pykernels.optimize": "reports.md",  # the function of that name has a page of the package's
    "pykernels.quantize": "quantized.md",  # so has that one
}
BESIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
BACKENDS = {"cpu": "CPU", "cuda": "CUDA", "triton": "Triton"}


def public_names(module: str) -> list[str]:
    """Its ``__all__``, without dunders and modules that have a part of their own."""
    source = ROOT / module.replace(".", "/") / "__init__.py"
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return [n for n in names if not n.startswith("__") and n not in ("models", "nn", "ops")]
    raise ValueError(f"{source} has no __all__")


def api_pages() -> dict[str, dict[str, str]]:
    """Part -> name -> page. A name that the package itself exports has its page there alone."""
    own = set(public_names("pykernels"))
    pages: dict[str, dict[str, str]] = {}
    for module in PARTS:
        names = [n for n in public_names(module) if module == "pykernels" or n not in own]
        pages[module] = {name: f"api/{module}.{name}.md" for name in names}
    return pages


def kernel_pages() -> dict[str, list[Path]]:
    """Family -> its pages, relative to docs/."""
    docs = ROOT / "docs"
    folders = sorted(p for p in (docs / "kernels").iterdir() if p.is_dir())
    return {folder.name: sorted(p.relative_to(docs) for p in folder.glob("*.md")) for folder in folders}


def on_config(config: Any) -> Any:
    """Adds what is generated to the navigation, before the last entry."""
    api = [
        {PARTS[module].removesuffix(".md"): [f"api/{PARTS[module]}", *({name: page} for name, page in pages.items())]}
        for module, pages in api_pages().items()
    ]
    kernels: list[Any] = [{"gemm": "kernels/gemm.md"}]
    for family, pages in kernel_pages().items():
        kernels.append({family: [{BACKENDS[page.stem]: str(page)} for page in pages]})
    config["nav"][-1:-1] = [{"API": api}, {"Kernels": kernels}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages."""
    from mkdocs.structure.files import File

    for source, page in BESIDE.items():
        files.append(File.generated(config, page, content=from_beside((ROOT / source).read_text())))
    for module, pages in api_pages().items():
        links = "\n".join(f"- [`{name}`]({module}.{name}.md)" for name in pages)
        # The docstring's first paragraph; the rest is for those who read the code.
        text = ast.get_docstring(ast.parse((ROOT / module.replace(".", "/") / "__init__.py").read_text())) or ""
        about = text.split("\n\n")[0]
        title = PARTS[module].removesuffix(".md")
        files.append(File.generated(config, f"api/{PARTS[module]}", content=f"# {title}\n\n{about}\n\n{links}\n"))
        for name, page in pages.items():
            files.append(File.generated(config, page, content=page_of(module, name)))
    return files


def page_of(module: str, name: str) -> str:
    """What mkdocstrings makes a page of. A function that is called what its package is has to be told from that."""
    path = f"{module}.{name}"
    home = f"{path}.{name}" if (ROOT / path.replace(".", "/")).is_dir() else path
    return f"::: {home}\n    options:\n      heading: {path}\n"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turns links to files outside docs/ into their names. tests/test_docs.py checks that they lead somewhere."""
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+tools/[^)]+\)", r"`\1`", markdown)


def from_beside(text: str) -> str:
    """The text of a file beside docs/, with its links as they are from within."""
    text = re.sub(r"\]\(docs/", "](", text)
    for source, page in BESIDE.items():
        text = text.replace(f"]({source})", f"]({page})")
    return text
