// Keeps what the daemon said in `view`, and gives it to the page, at most twice a second.
const PARTS = 80; // of each station in the trend
const COMMANDS = 5;
const view = flow.get("view") || { broker: false, status: null, recipes: [], commands: [], stations: {} };
flow.set("view", view);

function stationOf(name) {
    view.stations[name] ??= { state: null, result: null, defect: null, mask: null, trend: [], counts: { pass: 0, fail: 0, unknown: 0, missed: 0 } };
    return view.stations[name];
}

function result(station, said) {
    if (station.trend.some((part) => part.id === said.result_id)) return; // told twice: by MQTT, or by result and last
    const { result_id: id, created_at: at, verdict, score, threshold } = said;
    if (station.result) station.counts.missed += Math.max(0, said.sequence - station.result.sequence - 1);
    station.counts[verdict] += 1;
    station.trend = [...station.trend, { id, at, verdict, score, threshold }].slice(-PARTS);
    station.result = said;
    // The picture of the mask came before the result. Without one the page draws the regions' polygons.
    if (verdict === "fail") station.defect = { ...said, png: station.mask?.id === id ? station.mask.png : null };
}

function reply(said) {
    if (said.command === "recipe_list" && said.ok) view.recipes = said.answer.recipes.map((row) => row.recipe);
    const command = view.commands.find((command) => command.id === said.request_id);
    if (command) command.answer = said.ok ? "ok" : `${said.error.code}: ${said.error.message}`;
}

const heard = {
    state: (name, said) => (stationOf(name).state = said),
    result: (name, said) => result(stationOf(name), said),
    last: (name, said) => msg.retain && result(stationOf(name), said), // so that a page has a verdict at once
    mask: (name, png, id) => (stationOf(name).mask = { id, png: png.toString("base64") }),
    reply: (name, said) => reply(said),
};

if (msg.status) view.broker = msg.status.fill === "green";
else if (msg.asked) view.commands = [msg.asked, ...view.commands].slice(0, COMMANDS);
else if (msg.late) view.commands.filter((command) => command.id === msg.late).forEach((command) => (command.answer ??= "no answer"));
else if (!msg.payload || typeof msg.payload !== "object") return; // nothing that the daemon says
else {
    const [name, kind, id] = msg.topic.slice(env.get("PREFIX").length + 1).split("/");
    if (kind === undefined) view.status = msg.payload;
    else heard[kind](name, msg.payload, id);
}

if (context.get("drawing")) return;
context.set("drawing", true);
setTimeout(() => {
    context.set("drawing", false);
    node.send({ payload: view });
}, 500);
