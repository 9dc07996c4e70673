// Teaching: shots, banks and the region, by the same commands that MQTT and the shell have.
"use strict";

const recipe = document.body.dataset.recipe;
const mostBytes = Number(document.body.dataset.mostBytes);
const here = `/teach/${encodeURIComponent(recipe)}`;
const answers = document.getElementById("answers");
let state = JSON.parse(document.body.dataset.state);

// What is made anew when something has changed; what people are typing or reading stays.
const madeAnew = ["shots", "expectation", "banks"];

async function renew() {
  const answer = await fetch(here);
  if (!answer.ok) { reload(); return; }
  const made = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const id of madeAnew) {
    const there = document.getElementById(id);
    const focused = there.contains(document.activeElement) ? document.activeElement : null;
    const own = focused?.closest("[data-shot], [data-bank]");
    const section = there.closest("section");
    there.replaceWith(document.adoptNode(made.getElementById(id)));
    if (focused === null) continue;
    // Who works by keyboard goes on where they were, else at the section's heading.
    const [attribute, value] = own?.dataset.shot ? ["data-shot", own.dataset.shot] : ["data-bank", own?.dataset.bank];
    (section.querySelector(`[${attribute}="${value}"] button`) ?? section.querySelector("h2")).focus();
  }
}

let built = false; // since the page was opened

function showBuild() {
  const banner = document.getElementById("build");
  banner.hidden = !state.building && state.failed === null && !built;
  banner.querySelector("progress").hidden = !state.building;
  banner.querySelector("progress").value = state.share;
  if (state.building) put(banner, ".doing", `${texts.building}: ${state.doing ?? texts.waiting}, ${Math.round(100 * state.share)} %`);
  else put(banner, ".doing", state.failed === null ? texts.built : `${texts.failed} ${state.failed}`);
}

// Asks until nothing is built, then less often: another may be teaching too.
let asking;
async function ask() {
  clearTimeout(asking);
  try {
    const answer = await fetch(`${here}/state`, { signal: AbortSignal.timeout(5000) });
    if (answer.status === 401) { location.reload(); return; }
    const before = state;
    state = await answer.json();
    const ended = before.ended !== state.ended;
    built ||= ended;
    showBuild();
    if (ended || (before.building && !state.building)) await renew();
  } catch { /* `listen` says when the daemon is lost */ }
  clearTimeout(asking);
  asking = setTimeout(ask, state.building ? 1000 : 3000);
}

// adding

function line(name) {
  const item = document.createElement("li");
  const text = document.createElement("span");
  text.textContent = `${name}: ${texts.adding}`;
  item.append(text);
  answers.append(item);
  return item;
}

function tell(item, name, outcome, words) {
  item.dataset.outcome = outcome;
  // Most refusals name the file already.
  item.querySelector("span").textContent = words.startsWith(`${name}:`) ? words : `${name}: ${words}`;
}

function tellShot(item, name, shot) {
  const outcome = shot.held !== null ? "held" : shot.new ? "added" : "known";
  const held = shot.held === null ? "" : texts.held
    .replace("{score}", shot.held.score.toFixed(3)).replace("{threshold}", shot.held.threshold.toFixed(3));
  tell(item, name, outcome, [held || texts[outcome], ...shot.warnings].join(". "));
  if (!held) return;
  const picture = document.createElement("img");
  picture.src = `/held/${encodeURIComponent(recipe)}/${shot.shot}.jpg`;
  picture.alt = texts.held_picture;
  const force = document.createElement("button");
  force.textContent = texts.force;
  force.dataset.force = shot.shot;
  force.addEventListener("click", async () => {
    force.disabled = true;
    try {
      const kept = await fetch(`/held/${encodeURIComponent(recipe)}/${shot.shot}`);
      if (!kept.ok) throw new Error(await kept.text());
      const { shots: [taken] } = await command("register", { recipe, name, force: true }, await kept.blob());
      picture.remove();
      force.remove();
      tellShot(item, name, taken);
    } catch (error) { force.disabled = false; item.querySelector("span").textContent = `${name}: ${error.message}`; }
    await changed();
  });
  item.append(picture, force);
}

async function changed() {
  await renew();
  await ask();
}

async function take(request, name) {
  const item = line(name);
  try {
    const { shots } = await command("register", { recipe, ...request });
    shots.forEach((shot, number) => tellShot(number === 0 ? item : line(name), name, shot));
  } catch (error) { tell(item, name, "refused", error.message); }
  await changed();
}

async function upload(files) {
  const items = [...files].map((file) => [file, line(file.name)]);
  for (const [file, item] of items) {
    try {
      if (file.size > mostBytes) throw new Error(texts.too_large.replace("{bytes}", file.size).replace("{most}", mostBytes));
      const { shots: [shot] } = await command("register", { recipe, name: file.name.slice(0, 200) }, file);
      tellShot(item, file.name, shot);
    } catch (error) { tell(item, file.name, "refused", error.message); }
  }
  await changed();
}

async function during(button, work) {
  button.disabled = true;
  try { await work(); } finally {
    button.disabled = false;
    if (document.activeElement === document.body) button.focus(); // a button that is disabled loses it
  }
}

if (document.getElementById("add")) {
  const station = document.getElementById("station");
  const name = () => `${texts.frame} ${station.value}`;
  document.getElementById("take-last")?.addEventListener("click", ({ target }) =>
    during(target, () => take({ station: station.value, last: true }, name())));
  document.getElementById("take-next")?.addEventListener("click", ({ target }) => {
    const many = document.getElementById("many");
    if (many.reportValidity()) during(target, () => take({ station: station.value, next: Number(many.value) }, name()));
  });
  const files = document.getElementById("files");
  files.addEventListener("change", async () => {
    const chosen = [...files.files];
    files.value = "";
    await during(files, () => upload(chosen));
  });
  const gallery = document.getElementById("gallery");
  const dropping = (yes) => gallery.classList.toggle("dropping", yes);
  gallery.addEventListener("dragover", (event) => { event.preventDefault(); dropping(true); });
  gallery.addEventListener("dragleave", () => dropping(false));
  gallery.addEventListener("drop", (event) => {
    event.preventDefault();
    dropping(false);
    upload(event.dataTransfer.files);
  });
  // A file that misses the gallery must not replace the page.
  for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
}

// what is pressed twice

const sureForMs = 4000, notBeforeMs = 600;

function twice(button) {
  const { dataset } = button;
  const unarm = () => {
    clearTimeout(Number(dataset.timer));
    delete dataset.sure;
    button.textContent = dataset.text;
    if (dataset.label) button.setAttribute("aria-label", dataset.label);
  };
  if (dataset.sure) {
    // A double click, or a key held down, is one wish.
    if (performance.now() - Number(dataset.since) < notBeforeMs) return false;
    unarm();
    return true;
  }
  dataset.text = button.textContent;
  dataset.label = button.getAttribute("aria-label") ?? "";
  dataset.sure = "yes";
  dataset.since = performance.now();
  button.textContent = texts.sure;
  button.removeAttribute("aria-label");
  dataset.timer = setTimeout(unarm, sureForMs);
  return false;
}

document.addEventListener("click", async ({ target }) => {
  const button = target.closest("button");
  if (button?.matches("[data-forget]") && twice(button)) {
    const own = button.closest(".shot");
    await during(button, async () => {
      try {
        await command("forget", { recipe, shot: own.dataset.shot });
        await changed();
      } catch (error) { own.querySelector(".note").textContent = error.message; }
    });
  } else if (button?.matches("[data-rollback]") && twice(button)) {
    const note = document.getElementById("history-note");
    await during(button, async () => {
      try {
        const { bank } = await command("rollback", { recipe, bank: button.closest(".bank").dataset.bank });
        note.textContent = `${texts.rolled_back}: ${bank.bank.slice(0, 16)}`;
        await changed();
      } catch (error) { note.textContent = error.message; }
    });
  } else if (button?.id === "rebuild") {
    const note = document.getElementById("history-note");
    note.textContent = "";
    await during(button, async () => {
      try { await command("rebuild", { recipe }); await changed(); } catch (error) { note.textContent = error.message; }
    });
  }
});

// the region

const drawing = document.getElementById("drawing");
if (drawing) {
  const form = document.getElementById("region-form");
  const note = document.getElementById("region-note");
  const shade = drawing.querySelector(".shade");
  const picture = drawing.querySelector("img");
  const canvas = document.getElementById("canvas");
  const size = () => ({ width: Number(drawing.dataset.width), height: Number(drawing.dataset.height) });
  const whole = () => ({ x: 0, y: 0, ...size() });
  let region = JSON.parse(drawing.dataset.region);

  const show = (own) => {
    const { x, y, width, height } = own;
    for (const box of drawing.querySelectorAll("rect")) {
      for (const [name, value] of Object.entries({ x, y, width, height })) box.setAttribute(name, value);
    }
    const all = size();
    shade.setAttribute("d", `M0 0H${all.width}V${all.height}H0ZM${x} ${y}h${width}v${height}h${-width}Z`);
  };
  const fill = (own) => { if (form) for (const [name, value] of Object.entries(own)) form.elements[name].value = value; };
  const typed = () => Object.fromEntries(["x", "y", "width", "height"].map((name) => [name, Number(form.elements[name].value)]));
  const begin = () => { show(region ?? whole()); fill(region ?? whole()); };
  begin();

  canvas.addEventListener("change", () => {
    const { value, dataset } = canvas.selectedOptions[0];
    picture.src = value;
    drawing.dataset.width = dataset.width;
    drawing.dataset.height = dataset.height;
    drawing.querySelector("svg").setAttribute("viewBox", `0 0 ${dataset.width} ${dataset.height}`);
    begin();
  });

  if (form) {
    drawing.classList.add("drawn");
    const surface = drawing.querySelector("svg");
    let from = null;
    const at = (event) => {
      const box = surface.getBoundingClientRect();
      const { width, height } = size();
      const inside = (value, most) => Math.round(Math.min(Math.max(value, 0), 1) * most);
      return [inside((event.clientX - box.x) / box.width, width), inside((event.clientY - box.y) / box.height, height)];
    };
    surface.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      from = at(event);
      surface.setPointerCapture(event.pointerId);
    });
    surface.addEventListener("pointermove", (event) => {
      if (from === null) return;
      const to = at(event);
      const [x, y] = [Math.min(from[0], to[0]), Math.min(from[1], to[1])];
      const drawn = { x, y, width: Math.abs(from[0] - to[0]), height: Math.abs(from[1] - to[1]) };
      if (drawn.width < 1 || drawn.height < 1) return;
      show(drawn);
      fill(drawn);
    });
    for (const end of ["pointerup", "pointercancel"]) surface.addEventListener(end, () => { from = null; });
    form.addEventListener("input", () => { if (form.checkValidity()) show(typed()); });

    const set = async (wanted, button) => {
      note.textContent = "";
      await during(button, async () => {
        try {
          await command("region_set", { recipe, region: wanted });
          note.textContent = texts.region_set;
          const answer = await fetch(here);
          if (!answer.ok) { location.reload(); return; }
          const made = new DOMParser().parseFromString(await answer.text(), "text/html");
          region = JSON.parse(made.getElementById("drawing").dataset.region);
          begin();
          await changed();
        } catch (error) { note.textContent = error.message; }
      });
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const wanted = typed();
      const all = size();
      if (wanted.x + wanted.width > all.width || wanted.y + wanted.height > all.height) note.textContent = texts.region_outside;
      else set(wanted, document.getElementById("set-region"));
    });
    document.getElementById("whole-frame").addEventListener("click", () => { show(whole()); fill(whole()); });
    document.getElementById("own-region").addEventListener("click", ({ target }) => set(null, target));
  }
}

showBuild();
listen({ back: () => { lost(false); ask(); } });
ask();
