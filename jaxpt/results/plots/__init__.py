"""Pictures of a run, one function each; matplotlib figures. Needs matplotlib: `pip install "jaxpt[plots]"`.

`Result.plot` draws every picture for which a run has numbers; `Result.report` puts them on one page. The functions here
take arrays, most of them from `jaxpt.diagnostics`.
"""

from jaxpt.results.plots.comparison import comparison_picture
from jaxpt.results.plots.curves import error_curves, lineage_picture
from jaxpt.results.plots.diffusion import diffusion_panels, diffusion_picture
from jaxpt.results.plots.exchanges import acceptance_picture, energy_picture, exchange_picture, flow_picture
from jaxpt.results.plots.grid import grid_picture
from jaxpt.results.plots.style import COLORS

__all__ = [
    "COLORS",
    "acceptance_picture",
    "comparison_picture",
    "diffusion_panels",
    "diffusion_picture",
    "energy_picture",
    "error_curves",
    "exchange_picture",
    "flow_picture",
    "grid_picture",
    "lineage_picture",
]
