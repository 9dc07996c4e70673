// Once at the start: what to hear. The prefix stands in the tab's properties.
const prefix = env.get("PREFIX");
const topics = ["status", "+/state", "+/last", "+/mask/+", "+/result", "+/reply"];
return { action: "subscribe", topic: topics.map((topic) => ({ topic: `${prefix}/${topic}`, qos: 1 })) };
