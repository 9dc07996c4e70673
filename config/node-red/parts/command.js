// From the page: {station, name, request}. The answer comes on <prefix>/<station>/reply and names the request_id.
const { station, name, request } = msg.payload;
const id = `node-red-${RED.util.generateId()}`;
if (name !== "recipe_list") {
    setTimeout(() => node.send([null, { late: id }]), 30000);
    node.send([null, { asked: { id, station, name, request, at: new Date().toISOString(), answer: null } }]);
}
return [{ topic: `${env.get("PREFIX")}/${station}/command/${name}`, payload: { request_id: id, ...request } }, null];
