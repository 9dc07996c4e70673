// One station, closely: its newest parts one by one, their scores, how fast it is.
"use strict";
const everyMs = 4000, soonMs = 1500; // the archive writes a part a moment after its verdict
const name = document.body.dataset.station, acts = document.body.dataset.acts === "yes";
const at = (id) => document.getElementById(id);
const part = at("part"), film = at("film"), stage = at("stage"), layers = at("layers");
const figure = (value) => value === null ? "–" : value.toFixed(3);
let now = JSON.parse(document.body.dataset.now);
let held = null; // the part that is looked at; null: each as it comes
let pictured = null; // of which the picture is
let drawing = null, soon = null; // what is to be done in a moment
let draft = null; // where the threshold's line was moved to

zoomable(stage, layers, { zoomIn: at("zoom-in"), zoomOut: at("zoom-out"), fit: at("zoom-fit") });
const chart = histogram(at("histogram"), acts ? (value) => plan(value) : undefined);

// The picture.

const show = newestOnly(async (row) => {
  const address = `/result/${row.result_id}`;
  const layer = async (wanted, kind) => {
    if (!wanted) return null;
    try {
      const img = await loaded(`${address}.${kind}.png`, "");
      img.className = kind;
      return img;
    } catch { return null; }
  };
  const judged = row.verdict !== "unknown", alt = `${texts.picture} ${name}, ${row.at}`;
  const isKept = row.archived || row.picture;
  const part = async () => {
    if (!isKept) return null;
    try { return await loaded(`${address}.jpg${held === row ? "?size=large" : ""}`, alt); } catch (error) {
      if (held !== row) throw error; // the one before it stays
      row.picture = false;
      return null;
    }
  };
  const [picture, heat, mask] = await Promise.all([
    part(),
    layer(isKept && judged && at("show-heat").checked, "heat"),
    layer(isKept && row.verdict === "fail" && at("show-mask").checked, "mask"),
  ]);
  if (held !== null && held !== row) return;
  layers.replaceChildren(...[picture, heat, mask].filter((one) => one !== null));
  pictured = row;
  layers.dataset.result = row.result_id;
  const missing = picture === null ? ` · ${texts.no_picture}` : judged && at("show-heat").checked && heat === null ? ` · ${texts.no_heat}` : "";
  const of = `${texts.verdict[row.verdict]} ${row.at}`;
  put(document, "#caption", (held === null ? `${texts.is_live} · ${texts.pictured} ${of}` : `${texts.is_held} ${of}`) + missing);
});

// What was seen last, of a line that has not judged a part since somebody looks.
async function showNewest() {
  put(document, "#caption", texts.is_live);
  const picture = await loaded(`/preview/${encodeURIComponent(name)}.jpg`, `${texts.picture} ${name}`).catch(() => null);
  if (held === null && picture !== null) layers.replaceChildren(picture);
}

// A station that does not inspect shows no verdict of now: it would be an old one.
function putVerdict(row) {
  const isOld = held === null && part.dataset.inspects === "no";
  put(part, ".verdict", isOld ? texts.stopped : texts.verdict[row?.verdict] ?? texts.no_part);
}

function tell(row) {
  part.dataset.verdict = row.verdict;
  part.dataset.result = row.result_id;
  putVerdict(row);
  put(part, ".why", row.reason ?? "");
  put(part, ".score", figure(row.score));
  put(part, ".threshold", figure(row.threshold ?? now.state.threshold));
  put(part, "time", row.at);
  part.querySelector("time").title = row.utc;
}

function tellActs() {
  if (!acts) return;
  const box = at("acts");
  box.hidden = held === null || !held.archived;
  if (box.hidden || box.dataset.result === held.result_id && box.dataset.mark === held.mark) return;
  if (box.dataset.result !== held.result_id) box.querySelector(".note").textContent = "";
  box.dataset.result = held.result_id;
  box.dataset.mark = held.mark;
  put(box, ".mark", texts[`marked_${held.mark}`]);
}

function hold(row) {
  held = row;
  part.dataset.following = row === null ? "yes" : "no";
  if (row === null) film.scrollLeft = 0;
  at("live").setAttribute("aria-pressed", String(row === null));
  const shown = row ?? now.rows[0];
  if (shown !== undefined) {
    tell(shown);
    if (row !== null || shown.archived) show(shown);
    else showNewest();
  }
  tellFilm();
  tellActs();
}

// The filmstrip.

const tiles = new Map();

function tileOf(row) {
  let tile = tiles.get(row.result_id);
  if (tile === undefined) {
    tile = at("tile").content.firstElementChild.cloneNode(true);
    const button = tile.querySelector("button");
    button.dataset.result = row.result_id;
    button.dataset.verdict = row.verdict;
    button.title = row.utc;
    put(tile, ".word", texts.verdict[row.verdict]);
    put(tile, ".plain", [...texts.verdict[row.verdict]][0]);
    put(tile, ".number", figure(row.score));
    put(tile, ".when", row.at);
    button.addEventListener("click", () => open(row.result_id));
    tiles.set(row.result_id, tile);
  }
  const plain = tile.querySelector(".plain");
  if (row.archived && plain !== null) {
    const img = new Image();
    img.loading = "lazy";
    img.alt = "";
    img.src = `/result/${row.result_id}.jpg?size=small`;
    plain.replaceWith(img);
  }
  return tile;
}

function tellFilm() {
  const rows = now.rows;
  rows.forEach((row, index) => {
    const tile = tileOf(row), there = film.children[index];
    if (there === tile) return;
    film.insertBefore(tile, there ?? null);
    // What somebody looks at stays in its place.
    if (film.scrollLeft > 0 && index === 0) film.scrollLeft += tile.offsetWidth + 8;
  });
  while (film.children.length > rows.length) {
    tiles.delete(film.lastElementChild.querySelector("button").dataset.result);
    film.lastElementChild.remove();
  }
  const shown = held ?? rows[0];
  const reachable = rows.includes(shown) ? shown : rows[0];
  for (const row of rows) {
    const button = tiles.get(row.result_id).querySelector("button");
    button.tabIndex = row === reachable ? 0 : -1;
    if (row === held) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  at("film-none").hidden = rows.length > 0;
}

function open(result_id) {
  const row = now.rows.find((own) => own.result_id === result_id);
  if (row === undefined) return;
  hold(row);
  stage.scrollIntoView({ block: "nearest" });
}

film.addEventListener("keydown", (event) => {
  const from = now.rows.findIndex((row) => row.result_id === event.target.dataset.result);
  const to = { ArrowRight: from + 1, ArrowLeft: from - 1, Home: 0, End: now.rows.length - 1 }[event.key];
  if (from < 0 || to === undefined) return;
  event.preventDefault();
  const row = now.rows[to];
  if (row === undefined) return;
  open(row.result_id);
  tiles.get(row.result_id).querySelector("button").focus();
});

// Scores and threshold.

function tellScores() {
  const { scores, calibration, state } = now;
  chart.show({ scores, shots: calibration?.shot_scores ?? [], threshold: state.threshold, calibrated: calibration?.threshold ?? null });
  put(document, "#calibrated-value", figure(calibration?.threshold ?? null));
  put(document, "#threshold-value", figure(draft ?? state.threshold));
  const source = draft !== null ? `(${texts.not_set})` : calibration === null ? texts.no_calibration : state.threshold_stale ? texts.stale : calibration.by_hand ? `(${texts.by_hand})` : `(${texts.calibrated})`;
  put(document, "#threshold-source", source);
  put(document, "#advice", calibration === null ? "" : `${texts.calibration}: ${calibration.advice}`);
  const threshold = draft ?? state.threshold;
  const fails = scores.filter((score) => score > threshold).length;
  const told = draft === null ? texts.fail_now : texts.would_fail;
  put(document, "#would-fail", threshold === null ? "" : told.replace("{fails}", fails).replace("{parts}", scores.length));
  if (!acts) return;
  if (draft === null && document.activeElement !== at("new-threshold")) at("new-threshold").value = state.threshold?.toFixed(4) ?? "";
  at("set-threshold").disabled = draft === null;
  at("cancel-threshold").disabled = draft === null;
  at("calibrated-back").disabled = !(calibration?.by_hand || state.threshold_stale);
}

// The line was moved, or a number typed: told, and not set before the button is pressed.
function plan(value) {
  draft = value;
  chart.draft(value);
  if (value !== null && document.activeElement !== at("new-threshold")) at("new-threshold").value = value.toFixed(4);
  at("threshold-note").textContent = "";
  tellScores();
}

if (acts) {
  const change = async (request) => {
    const note = at("threshold-note");
    for (const id of ["set-threshold", "calibrated-back"]) at(id).disabled = true;
    try {
      const { threshold } = await command("threshold_set", { station: name, ...request });
      now.state.threshold = threshold;
      plan(null);
      note.textContent = `${texts.done}: ${figure(threshold)}`;
    } catch (error) { note.textContent = error.message; }
    await refresh(true);
  };
  at("new-threshold").addEventListener("input", ({ target }) => {
    const value = target.valueAsNumber;
    plan(Number.isFinite(value) && value > 0 ? value : null);
  });
  at("set-threshold").addEventListener("click", () => change({ threshold: draft }));
  at("cancel-threshold").addEventListener("click", () => plan(null));
  at("calibrated-back").addEventListener("click", () => change({}));
  actOn(at("acts"), (result_id, mark) => {
    const row = now.rows.find((own) => own.result_id === result_id);
    if (row !== undefined) row.mark = mark;
    if (held?.result_id === result_id) held.mark = mark;
    refresh(true);
  });
}

// Latency.

function tellLatency() {
  const { latency } = now;
  const told = (value) => latency === null ? "–" : `${value.toFixed(1)} ms`;
  put(document, "#latency-half", told(latency?.half_ms));
  put(document, "#latency-most", told(latency?.most_ms));
  put(document, "#latency-slowest", told(latency?.slowest_ms));
  if (latency === null) return;
  const times = latency.newest_ms.toReversed(), highest = Math.max(latency.slowest_ms, 0.001);
  const points = times.map((value, index) => `${300 * index / Math.max(1, times.length - 1)},${58 - 54 * value / highest}`);
  at("latency-trend").querySelector("polyline").setAttribute("points", points.join(" "));
}

// What the daemon tells.

function showState(state) {
  if (state.station !== name) return;
  const other = state.recipe !== now.state.recipe;
  const moved = state.threshold !== now.state.threshold;
  now.state = state;
  part.dataset.inspects = state.inspects ? "yes" : "no";
  putVerdict(held ?? now.rows[0]);
  put(part, ".state", state.inspects ? texts.inspecting : state.state);
  put(part, ".recipe", state.recipe);
  put(part, "#state-note", state.reason ?? state.advice ?? "");
  if (other) {
    now.scores = [];
    if (acts) plan(null);
  }
  if (held === null) put(part, ".threshold", figure(state.threshold));
  if (other || moved) refresh();
}

function showResult(row) {
  if (row.station !== name || now.rows.some((own) => own.result_id === row.result_id)) return;
  now.rows.unshift({ archived: false, mark: "none", ...row });
  if (now.rows.length > now.most.rows) now.rows.pop();
  if (row.score !== null && row.recipe === now.state.recipe) now.scores = [row.score, ...now.scores].slice(0, now.most.scores);
  if (held === null) {
    tell(row);
    if (row.picture) show(now.rows[0]);
  }
  // However many come: what is drawn, and asked for, has a bounded rate.
  drawing ??= requestAnimationFrame(() => {
    drawing = null;
    tellFilm();
    tellScores();
  });
  if (row.verdict !== "pass") soon ??= setTimeout(() => { soon = null; refresh(); }, soonMs);
}

let wantsFresh = false; // somebody here has just changed something
const asked = newestOnly(async () => {
  const fresh = wantsFresh;
  wantsFresh = false;
  const answer = await fetch(`/station/${encodeURIComponent(name)}/now${fresh ? "?fresh" : ""}`, { signal: AbortSignal.timeout(10000) });
  if (!answer.ok) return;
  const next = await answer.json();
  const before = new Map(now.rows.map((row) => [row.result_id, row]));
  // Those that were told of since the answer was made come first; what is held stays the same object.
  const newest = next.rows[0]?.sequence ?? 0;
  const other = next.state.recipe !== now.state.recipe;
  const rows = next.rows.map((row) => Object.assign(before.get(row.result_id) ?? row, row));
  now = { ...next, rows: [...now.rows.filter((row) => row.sequence > newest), ...rows].slice(0, next.most.rows) };
  if (other && acts) plan(null);
  showState(now.state);
  tellFilm();
  tellScores();
  tellLatency();
  tellActs();
});

// What somebody looks at or has begun stays.
function back() {
  if (held === null && draft === null) { reload(); return; }
  lost(false);
  hold(held);
  refresh(true);
}

function refresh(fresh = false) {
  wantsFresh ||= fresh;
  return asked();
}

at("live").addEventListener("click", () => hold(null));
for (const id of ["show-heat", "show-mask"]) {
  at(id).addEventListener("change", () => { const row = held ?? pictured; if (row !== null) show(row); });
}
setInterval(() => { if (!document.hidden) refresh(); }, everyMs);
hold(null);
tellScores();
tellLatency();
listen({ result: showResult, state: showState, stations: ({ stations }) => { if (!stations.includes(name)) reload(); }, back });
