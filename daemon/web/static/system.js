// The system: its state every 5 s, and the doctor when somebody asks for one.
"use strict";
const everyMs = 5000, askMs = 1000;
const now = document.getElementById("system-now");
const button = document.getElementById("system-run-doctor");

async function get(path) {
  const answer = await fetch(path, { redirect: "error", signal: AbortSignal.timeout(10000) });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.text();
}

async function refresh() {
  // A page that nobody sees asks nothing.
  if (!document.hidden) {
    try { now.innerHTML = await get("/system/now"); } catch { /* `listen` says when the daemon is lost */ }
  }
  setTimeout(refresh, everyMs);
}

const examined = document.getElementById("system-doctor");
const runs = () => examined.firstElementChild.dataset.status === "running";

async function follow() {
  button.disabled = true;
  while (runs()) {
    await new Promise((done) => setTimeout(done, askMs));
    try { examined.innerHTML = await get("/system/doctor"); } catch { /* asked again */ }
  }
  button.disabled = false;
}

button?.addEventListener("click", async () => {
  const note = document.getElementById("system-doctor-note");
  button.disabled = true;
  note.textContent = "";
  try {
    const headers = { "X-CSRF-Token": document.body.dataset.csrf };
    const answer = await fetch("/system/doctor", { method: "POST", headers });
    if (!answer.ok && answer.status !== 409) throw new Error(await answer.text());
    examined.innerHTML = await answer.text();
  } catch (error) { note.textContent = error.message; }
  await follow();
});

if (button) follow();
setTimeout(refresh, everyMs);
listen();
