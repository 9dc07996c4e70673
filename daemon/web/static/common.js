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
  const answer = await fetch(path, { method: "POST", headers, body: file ?? JSON.stringify(fields) });
  const document_ = await answer.json();
  if (!answer.ok) throw new Error(document_.error.message);
  return document_;
}

function lost(yes) {
  document.body.classList.toggle("lost", yes);
  const banner = document.getElementById("lost");
  const text = yes ? banner.dataset.text : "";
  if (banner.textContent !== text) banner.textContent = text;
}

// Calls heard[event](document) for what the daemon tells; `heard.back` once a lost daemon is there again.
function listen(heard) {
  let source, last = Date.now();
  const begin = () => {
    source?.close();
    source = new EventSource("/live");
    source.addEventListener("open", () => {
      // What came meanwhile is in the ledger, and in a page made anew.
      if (document.body.classList.contains("lost")) { (heard.back ?? (() => location.reload()))(); return; }
      last = Date.now();
    });
    source.addEventListener("error", () => { lost(true); if (source.readyState === EventSource.CLOSED) setTimeout(begin, 2000); });
    for (const event of ["result", "state", "alive", "stations"]) {
      source.addEventListener(event, ({ data }) => { last = Date.now(); heard[event]?.(JSON.parse(data)); });
    }
  };
  setInterval(() => { if (Date.now() - last > silentAfterMs) lost(true); }, 1000);
  begin();
}
