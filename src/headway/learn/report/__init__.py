"""Reports: curves, samples, pictures and configuration in one self-contained HTML file."""

from headway.learn.report.charts import Stroke, bar_chart, heatmap, line_chart
from headway.learn.report.rendering import Picture, Sections, Tile, available, tile_grid, write_report

__all__ = [
    "Picture",
    "Sections",
    "Stroke",
    "Tile",
    "available",
    "bar_chart",
    "heatmap",
    "line_chart",
    "tile_grid",
    "write_report",
]
