// The wall: what the daemon tells, as it tells it.
"use strict";
const most = Number(document.body.dataset.trend);
const tiles = new Map();

for (const tile of document.querySelectorAll(".station")) {
  const rows = JSON.parse(tile.dataset.rows);
  const own = { tile, rows, shown: null };
  own.picture = pictures(own);
  tiles.set(tile.dataset.station, own);
  drawTrend(tiles.get(tile.dataset.station));
}

function drawTrend({ tile, rows }) {
  const judged = rows.filter((row) => row.score !== null && row.threshold);
  const svg = tile.querySelector(".trend");
  const top = 2; // times the threshold, at the upper edge
  const y = (row) => 58 - 56 * Math.min(row.score / row.threshold, top) / top;
  const x = (index) => 300 * (index + most - judged.length) / most;
  svg.querySelector("polyline").setAttribute("points", judged.map((row, index) => `${x(index)},${y(row)}`).join(" "));
  for (const end of ["y1", "y2"]) svg.querySelector(".limit").setAttribute(end, "30");
  const marks = judged.flatMap((row, index) => {
    if (row.verdict !== "fail") return [];
    const mark = document.createElementNS("http://www.w3.org/2000/svg", "line");
    mark.setAttribute("class", "over");
    for (const [name, value] of [["x1", x(index)], ["x2", x(index)], ["y1", 60], ["y2", y(row)]]) mark.setAttribute(name, value);
    return [mark];
  });
  svg.querySelector("g").replaceChildren(...marks);
}

// Of a fast line not every part has a picture: say of which one it is.
function pictures(own) {
  const { tile } = own;
  const alt = tile.querySelector("img").alt;
  return newestOnly(async (row) => {
    const img = await loaded(`/preview/${encodeURIComponent(row.station)}.jpg?result=${row.result_id}`, alt);
    tile.querySelector("img").replaceWith(img);
    own.shown = row;
    put(tile, "figcaption", `${texts.pictured} ${texts.verdict[row.verdict]} ${row.at}`);
  });
}

// A station that does not inspect shows no verdict: it would be an old one.
function putVerdict(tile) {
  const { inspects, verdict } = tile.dataset;
  put(tile, ".verdict", inspects === "no" ? texts.stopped : texts.verdict[verdict] ?? texts.no_part);
}

function showResult(row) {
  const own = tiles.get(row.station);
  if (own === undefined) return;
  const { tile, rows } = own;
  if (rows.some((there) => there.result_id === row.result_id)) return; // the stream begins with what the page may have
  rows.push(row);
  if (rows.length > most) rows.shift();
  tile.dataset.verdict = row.verdict;
  putVerdict(tile);
  put(tile, ".why", row.reason ?? "");
  put(tile, ".score", row.score === null ? "–" : row.score.toFixed(3));
  if (row.threshold !== null) put(tile, ".threshold", row.threshold.toFixed(3));
  put(tile, "time", row.at);
  tile.querySelector("time").title = row.utc;
  drawTrend(own);
  if (row.picture) own.picture(row);
}

function showState(state) {
  const own = tiles.get(state.station);
  if (own === undefined) { reload(); return; }
  const { tile } = own;
  tile.dataset.inspects = state.inspects ? "yes" : "no";
  putVerdict(tile);
  put(tile, ".state", state.inspects ? texts.inspecting : state.state);
  put(tile, ".recipe", state.recipe);
  put(tile, ".note", state.reason ?? state.advice ?? "");
  if (state.threshold !== null) put(tile, ".threshold", state.threshold.toFixed(3));
}

listen({ result: showResult, state: showState, stations: reload });
