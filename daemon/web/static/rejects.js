// Marks and promotions: the same commands that MQTT and the shell have.
"use strict";
const texts = JSON.parse(document.body.dataset.texts);

async function command(name, request) {
  const answer = await fetch(`/api/commands/${name}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": document.body.dataset.csrf },
    body: JSON.stringify({ ...request, request_id: crypto.randomUUID?.() ?? String(Math.random()) }),
  });
  const document_ = await answer.json();
  if (!answer.ok) throw new Error(document_.error.message);
  return document_;
}

for (const part of document.querySelectorAll(".part")) {
  const result_id = part.dataset.result;
  const note = part.querySelector(".note");
  let held = false;
  const showMark = (mark) => {
    part.dataset.mark = mark;
    part.querySelector(".mark").textContent = texts[`marked_${mark}`];
  };
  const act = async (work) => {
    const buttons = part.querySelectorAll("button");
    for (const button of buttons) button.disabled = true;
    note.textContent = "";
    try { await work(); } catch (error) { note.textContent = error.message; }
    for (const button of buttons) button.disabled = false;
  };
  for (const button of part.querySelectorAll("button[data-mark]")) {
    button.addEventListener("click", () => act(async () => {
      await command("mark", { result_id, verdict: button.dataset.mark });
      showMark(button.dataset.mark);
    }));
  }
  part.querySelector("[data-promote]")?.addEventListener("click", () => act(async () => {
    const { shots: [shot] } = await command("promote", { result_id, force: held });
    held = shot.held !== null;
    note.textContent = [held ? texts.held : shot.new ? texts.promoted : texts.known, ...shot.warnings].join(". ");
    if (!held) showMark("good");
  }));
}
