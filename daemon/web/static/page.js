// The wall: what the daemon tells, as it tells it.
"use strict";
const texts = JSON.parse(document.body.dataset.texts);
const most = Number(document.body.dataset.trend);
const silentAfterMs = 5000; // the daemon says something every second
const tiles = new Map();
let heard = Date.now();

for (const tile of document.querySelectorAll(".station")) {
  const rows = JSON.parse(tile.dataset.rows);
  tiles.set(tile.dataset.station, { tile, rows, loading: false, again: false, picture: null, shown: null });
  const img = tile.querySelector("img");
  const own = tiles.get(tile.dataset.station);
  const ended = () => { own.loading = false; if (own.again) showPicture(own); };
  img.addEventListener("load", () => {
    // Of a fast line not every part has a picture: say of which one it is.
    const row = own.shown;
    if (row) put(tile, "figcaption", `${texts.pictured} ${texts.verdict[row.verdict]} ${row.at}`);
    ended();
  });
  img.addEventListener("error", ended);
  drawTrend(own);
}

function put(tile, selector, text) {
  const there = tile.querySelector(selector);
  if (there.textContent !== text) there.textContent = text;
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

function showPicture(own) {
  if (own.loading) { own.again = true; return; }
  own.loading = true;
  own.again = false;
  const img = own.tile.querySelector("img");
  own.shown = own.picture;
  img.src = `/preview/${encodeURIComponent(own.tile.dataset.station)}.jpg?result=${own.picture.result_id}`;
}

function showResult(row) {
  const own = tiles.get(row.station);
  if (own === undefined) return;
  const { tile, rows } = own;
  rows.push(row);
  if (rows.length > most) rows.shift();
  tile.dataset.verdict = row.verdict;
  put(tile, ".verdict", texts.verdict[row.verdict]);
  put(tile, ".why", row.reason ?? "");
  put(tile, ".score", row.score === null ? "–" : row.score.toFixed(3));
  if (row.threshold !== null) put(tile, ".threshold", row.threshold.toFixed(3));
  put(tile, "time", row.at);
  tile.querySelector("time").title = row.utc;
  drawTrend(own);
  if (row.picture) { own.picture = row; showPicture(own); }
}

function showState(state) {
  const own = tiles.get(state.station);
  if (own === undefined) { location.reload(); return; }
  const { tile } = own;
  tile.dataset.inspects = state.inspects ? "yes" : "no";
  put(tile, ".state", state.inspects ? texts.inspecting : state.state);
  put(tile, ".recipe", state.recipe);
  put(tile, ".note", state.reason ?? state.advice ?? "");
  if (state.threshold !== null) put(tile, ".threshold", state.threshold.toFixed(3));
}

function lost(yes) {
  const banner = document.getElementById("lost");
  document.body.classList.toggle("lost", yes);
  const text = yes ? banner.dataset.text : "";
  if (banner.textContent !== text) banner.textContent = text;
}

let source;
function listen() {
  source?.close();
  source = new EventSource("/live");
  source.addEventListener("open", () => {
    // What came meanwhile is in the ledger, and in a page made anew.
    if (document.body.classList.contains("lost")) { location.reload(); return; }
    heard = Date.now();
  });
  source.addEventListener("error", () => { lost(true); if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2000); });
  source.addEventListener("result", (event) => { heard = Date.now(); showResult(JSON.parse(event.data)); });
  source.addEventListener("state", (event) => { heard = Date.now(); showState(JSON.parse(event.data)); });
  source.addEventListener("alive", () => { heard = Date.now(); });
  source.addEventListener("stations", () => location.reload());
}
setInterval(() => { if (Date.now() - heard > silentAfterMs) lost(true); }, 1000);
listen();
