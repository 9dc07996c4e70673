// What every page's script uses.
"use strict";
const texts = JSON.parse(document.body.dataset.texts);
const silentAfterMs = 5000; // the daemon says something every second

function put(root, selector, text) {
  const there = root.querySelector(selector);
  if (there.textContent !== text) there.textContent = text;
}

// The same commands that MQTT and the shell have. A file goes as it is, its fields in the address.
async function command(name, request, file) {
  const headers = { "X-CSRF-Token": document.body.dataset.csrf };
  let path = `/api/commands/${name}`;
  const fields = { ...request, request_id: crypto.randomUUID?.() ?? String(Math.random()) };
  if (file === undefined) headers["Content-Type"] = "application/json";
  else {
    headers["Content-Type"] = "application/octet-stream";
    path += `?${new URLSearchParams(fields)}`;
  }
  let answer;
  try { answer = await fetch(path, { method: "POST", headers, body: file ?? JSON.stringify(fields) }); } catch { throw new Error(document.body.dataset.unreached); }
  const document_ = await answer.json();
  if (!answer.ok) throw new Error(document_.error.message);
  return document_;
}

// Does the work for what is given, one at a time; of what comes meanwhile only for the newest.
function newestOnly(work) {
  let busy = false, next = null;
  return async (given) => {
    next = { given };
    if (busy) return;
    busy = true;
    while (next !== null) {
      const now = next.given;
      next = null;
      try { await work(now); } catch { /* a picture that is gone by now leaves the one before it */ }
    }
    busy = false;
  };
}

// A picture once it is there; rejected where there is none.
function loaded(src, alt) {
  const img = new Image();
  img.alt = alt;
  return new Promise((resolve, reject) => {
    img.addEventListener("load", () => resolve(img));
    img.addEventListener("error", reject);
    img.src = src;
  });
}

// Buttons that mark and promote the archived part that root.dataset.result names. told(result_id, mark): it is marked so now.
function actOn(root, told = () => {}) {
  const note = root.querySelector(".note");
  const promotes = root.querySelector("[data-promote]"), promotesText = promotes?.textContent;
  const sureForMs = 10000;
  let held = null, timer; // the part whose promotion was held back, and may be forced for a moment
  const hold = (result_id) => {
    clearTimeout(timer);
    held = result_id;
    if (promotes) promotes.textContent = held === null ? promotesText : texts.force;
    if (held !== null) timer = setTimeout(() => hold(null), sureForMs);
  };
  const showMark = (result_id, mark) => {
    told(result_id, mark);
    if (root.dataset.result !== result_id) return;
    root.dataset.mark = mark;
    root.querySelector(".mark").textContent = texts[`marked_${mark}`];
  };
  const act = async (work) => {
    const result_id = root.dataset.result;
    const say = (text) => { if (root.dataset.result === result_id) note.textContent = text; };
    const focused = document.activeElement;
    const buttons = root.querySelectorAll("button");
    for (const button of buttons) button.disabled = true;
    say("");
    try { await work(result_id, say); } catch (error) { say(error.message); }
    for (const button of buttons) button.disabled = false;
    if (document.activeElement === document.body) focused?.focus(); // a button that is disabled loses it
  };
  for (const button of root.querySelectorAll("button[data-mark]")) {
    button.addEventListener("click", () => act(async (result_id) => {
      await command("mark", { result_id, verdict: button.dataset.mark });
      showMark(result_id, button.dataset.mark);
    }));
  }
  promotes?.addEventListener("click", (event) => event.detail < 2 && act(async (result_id, say) => {
    const force = held === result_id;
    hold(null);
    const { shots: [shot] } = await command("promote", { result_id, force });
    hold(shot.held !== null ? result_id : null);
    say([held ? texts.held : shot.new ? texts.promoted : texts.known, ...shot.warnings].join(". "));
    if (!held) showMark(result_id, "good");
  }));
}

function lost(yes) {
  document.body.classList.toggle("lost", yes);
  const banner = document.getElementById("lost");
  const text = yes ? banner.dataset.text : "";
  if (banner.textContent !== text) banner.textContent = text;
  // The largest thing to be seen must not be an old verdict.
  if (yes) for (const word of document.querySelectorAll(".verdict:not(.small)")) word.textContent = texts.no_link;
}

// A page that is made anew once the daemon answers: a browser's own error page would stay.
async function reload() {
  try { await fetch(location.href, { signal: AbortSignal.timeout(5000) }); } catch { setTimeout(reload, 2000); return; }
  location.reload();
}

// Calls heard[event](document) for what the daemon tells; `heard.back` once a lost daemon is there again. A page that wants no
// results hears only that it lives.
function listen(heard = {}) {
  const address = heard.result ? "/live" : "/live?quiet";
  let source, last = performance.now();
  // What came meanwhile is in the ledger, and in a page made anew.
  const isBack = () => document.body.classList.contains("lost") && ((heard.back ?? reload)(), true);
  const begin = () => {
    source?.close();
    source = new EventSource(address);
    source.addEventListener("open", () => { if (!isBack()) last = performance.now(); });
    source.addEventListener("error", async () => {
      lost(true);
      if (source.readyState !== EventSource.CLOSED) return;
      // Who is logged in no more is led to the form.
      const answer = await fetch("/static/common.js", { cache: "no-store" }).catch(() => null);
      if (answer?.status === 401) location.reload();
      else setTimeout(begin, 2000);
    });
    for (const event of ["result", "state", "alive", "stations"]) {
      // Also a silence may end without a new connection.
      source.addEventListener(event, ({ data }) => { if (!isBack()) { last = performance.now(); heard[event]?.(JSON.parse(data)); } });
    }
  };
  setInterval(() => { if (performance.now() - last > silentAfterMs) lost(true); }, 1000);
  begin();
}
