"""A dashboard with what all of ours have: where the data comes from, what can be chosen, and the way to the others."""

from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from demo.dashboards.panels import DATASOURCE, Panel

TAG = "aprilcam"
_KEEP = "&var-datasource=${datasource}&${__url_time_range}"
STATION_LINK = "/d/aprilcam-station?var-instance=${instance}&var-station=${__value.text}" + _KEEP
LINE_LINK = "/d/aprilcam-line?var-instance=${__value.text}" + _KEEP


class Board:
    """Filled from the top; `text` gives the file."""

    def __init__(self, uid: str, title: str, description: str) -> None:
        self._dashboard = dashboards.Dashboard(title).uid(uid).description(description).tags([TAG]).editable()
        self._dashboard.time("now-6h", "now").refresh("30s").timezone("browser")
        self._dashboard.tooltip(model.DashboardCursorSync.CROSSHAIR)
        link = dashboards.DashboardLink("aprilcam").type(model.DashboardLinkType.DASHBOARDS).tags([TAG])
        self._dashboard.link(link.include_vars(include_vars=True).keep_time(keep_time=True))
        source = dashboards.DatasourceVariable("datasource").label("data source").type("prometheus")
        self._dashboard.with_variable(source)

    def choose(self, name: str, label: str, query: str, *, several: bool = False) -> None:
        """A variable whose choices come from Prometheus; several: any number of them, at first all."""
        variable = dashboards.QueryVariable(name).label(label).datasource(DATASOURCE).query({"query": query, "refId": name})
        variable = variable.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_ASC)
        if several:
            everything = model.VariableOption(selected=True, text=["All"], value=["$__all"])
            variable = variable.multi(multi=True).include_all(include_all=True).current(everything)
        self._dashboard.with_variable(variable)

    def row(self, title: str) -> None:
        """A heading over what follows."""
        self._dashboard.with_row(dashboards.Row(title))

    def add(self, *panels: Panel) -> None:
        """From left to right, then from top to bottom."""
        for panel in panels:
            self._dashboard.with_panel(panel)

    def text(self) -> str:
        """JSON as Grafana provisions it."""
        built = self._dashboard.build()
        for number, panel in enumerate(built.panels or [], 1):
            panel.id_val = number
        return JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(built) + "\n"
