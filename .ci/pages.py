"""Writes the pages of the interface, from its docstrings, and the guide into a folder: uv run .ci/pages.py FOLDER.

Those of the interface are pdoc's, with type hints as the source has them: Float[Array, 'P M'], not the modules in which
JAX keeps these.
"""

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import guide
import jinja2
import pdoc

MODULES = [
    "jaxpt",
    "jaxpt.results.plots",
    "jaxpt.training.stream",
    "jaxpt.core.types",
    "jaxpt.devices.execution",
    "jaxpt.devices.precision",
]
LONG = re.compile(r"\b(jaxtyping|typing|builtins|jaxlib\._jax|jax\.jaxlib\._jax|jaxpt(\.\w+)*)\.(?=[A-Z])")
LONG_IN_CODE = re.compile(
    r'<span class="n">(jaxtyping|typing|jax|jaxlib|_jax|flax|_src|base|module|rnglib)</span><span class="o">\.</span>'
)
TEMPLATE = """
{% extends "default/module.html.jinja2" %}
{% block style %}
    {{ super() }}
    <style>
        body { width: calc(72rem + var(--sidebar-width)) !important; max-width: 100%; }
        .pdoc .attr { overflow-x: auto; }
    </style>
{% endblock %}
{% block nav_title %}<a href="{{ "../" * module.modulename.count(".") }}README.html">Guide</a>{% endblock %}
{% macro decorators(doc) %}
    {% for d in doc.decorators if d in ("@property", "@classmethod") %}<div class="decorator">{{ d }}</div>{% endfor %}
{% endmacro %}
{% macro is_public(doc) %}
    {% if doc.name == "__init__" %}
        {% if doc.kind == "function" and doc.signature_without_self.parameters %}true{% endif %}
    {% elif doc.kind == "module" and doc.fullname not in all_modules %}
    {% elif doc.docstring.startswith("Alias for field number") %}
    {% elif not doc.name.startswith("_") and (doc.docstring or doc.kind != "variable") %}true{% endif %}
{% endmacro %}
{% macro annotation(var) %}
    {%- if var.annotation_str -%}<span class="annotation">{{ var.annotation_str | short | escape | linkify }}</span>
    {%- endif -%}
{% endmacro %}
"""


def shortened(signature: Any, colon: bool) -> Any:
    """Returns pdoc's HTML of a signature with the names that its source has."""
    return type(found := full(signature, colon))(LONG_IN_CODE.sub("", found))


@jinja2.pass_context
def without_stock_phrases(context: Any, docstring: str) -> str:
    """Returns a docstring as Markdown, or nothing if it is the one that Python gives to every named tuple."""
    return "" if docstring.startswith("Create new instance of") else to_markdown(context, docstring)


filters = pdoc.render.env.filters
full, to_markdown = filters["format_signature"], filters["to_markdown"]
filters |= {
    "format_signature": shortened,
    "to_markdown": without_stock_phrases,
    "short": lambda hint: LONG.sub("", hint),
}

if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    warnings.simplefilter("error")  # a name that cannot be found, a docstring that cannot be read
    pdoc.render.configure(docformat="google", footer_text="jaxpt")
    guide.write(Path(sys.argv[1]))
    pdoc.render.env.loader = jinja2.ChoiceLoader(
        [jinja2.DictLoader({"module.html.jinja2": TEMPLATE}), pdoc.render.env.loader]
    )
    pdoc.pdoc(*MODULES, output_directory=Path(sys.argv[1]))
