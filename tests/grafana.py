"""What Grafana accepts as a dashboard, as far as ours goes: a wrong type, value or unknown field is an error.

Source: Grafana's schema of dashboards (kinds/dashboard/dashboard_kind.cue, schema version 36 and later) and of its stat and
time series panels; what it holds for optional and we do not use is left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Text = Annotated[str, Meta(min_length=1)]


class Model(Struct, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """A part of a dashboard."""


class DataSourceRef(Model):
    type: Literal["prometheus"]
    uid: Text


class Range(Model, rename={"from_": "from"}):
    from_: Text
    to: Text


class GridPos(Model):
    h: Annotated[int, Meta(gt=0)]
    w: Annotated[int, Meta(gt=0, le=24)]
    x: Annotated[int, Meta(ge=0, lt=24)]
    y: Annotated[int, Meta(ge=0)]


class Target(Model):
    """A query, as the Prometheus data source has it."""

    ref_id: Annotated[str, Meta(pattern="^[A-Z]$")]
    datasource: DataSourceRef
    expr: Text
    legend_format: str = ""
    instant: bool = False
    range: bool = True
    format: Literal["time_series", "table", "heatmap"] = "time_series"


class Threshold(Model):
    color: Text
    value: float | None  # None: from minus infinity


class Thresholds(Model):
    mode: Literal["absolute", "percentage"]
    steps: Annotated[list[Threshold], Meta(min_length=1)]


class Color(Model):
    mode: Literal["thresholds", "palette-classic", "palette-saturated", "continuous-GrYlRd", "fixed"]
    fixed_color: str | None = None


class MappedTo(Model):
    text: str | None = None
    color: str | None = None
    index: int | None = None


class ValueMap(Model):
    type: Literal["value"]
    options: dict[str, MappedTo]


class Defaults(Model):
    unit: Text
    thresholds: Thresholds | None = None
    color: Color | None = None
    mappings: list[ValueMap] = []
    min: float | None = None
    max: float | None = None


class FieldConfig(Model):
    defaults: Defaults
    overrides: Annotated[list[Any], Meta(max_length=0)]


class Reduce(Model):
    calcs: Annotated[list[Literal["last", "lastNotNull", "max", "min", "mean", "sum"]], Meta(min_length=1)]
    fields: str
    values: bool


class StatOptions(Model):
    color_mode: Literal["value", "background", "background_solid", "none"]
    graph_mode: Literal["none", "line", "area"]
    text_mode: Literal["auto", "value", "value_and_name", "name", "none"]
    reduce_options: Reduce


class Legend(Model):
    display_mode: Literal["list", "table", "hidden"]
    placement: Literal["bottom", "right"]
    show_legend: bool
    calcs: list[str]


class Tooltip(Model):
    mode: Literal["single", "multi", "none"]
    sort: Literal["asc", "desc", "none"]


class GraphOptions(Model):
    legend: Legend
    tooltip: Tooltip


class Panel(Model, tag_field="type"):
    id: Annotated[int, Meta(gt=0)]
    title: Text
    description: str
    datasource: DataSourceRef
    grid_pos: GridPos
    targets: Annotated[list[Target], Meta(min_length=1)]
    field_config: FieldConfig


class Stat(Panel, tag="stat"):
    options: StatOptions


class TimeSeries(Panel, tag="timeseries"):
    options: GraphOptions


class Current(Model):
    text: str | list[str] = ""
    value: str | list[str] = ""


class Variable(Model, tag_field="type"):
    name: Annotated[str, Meta(pattern="^[a-z]+$")]
    label: str
    current: Current
    refresh: Literal[0, 1, 2]  # never, when the dashboard is loaded, when its range changes


class DataSourceVariable(Variable, tag="datasource"):
    query: Literal["prometheus"]


class Query(Model):
    query: Text
    ref_id: Text


class QueryVariable(Variable, tag="query"):
    datasource: DataSourceRef
    query: Query
    definition: Text
    include_all: bool
    multi: bool
    sort: Annotated[int, Meta(ge=0, le=8)]


class Variables(Model, rename={"variables": "list"}):
    variables: list[DataSourceVariable | QueryVariable]


class Annotations(Model, rename={"annotations": "list"}):
    annotations: Annotated[list[Any], Meta(max_length=0)]


class Dashboard(Model):
    uid: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,40}$")]
    title: Text
    tags: list[str]
    schema_version: Annotated[int, Meta(ge=36)]
    version: Annotated[int, Meta(ge=1)]
    editable: bool
    refresh: Annotated[str, Meta(pattern="^[0-9]+[smhd]$")]
    timezone: Literal["browser", "utc"]
    time: Range
    templating: Variables
    annotations: Annotations
    panels: Annotated[list[Stat | TimeSeries], Meta(min_length=1)]
