// Eclipse Tahu's own JavaScript, as the other side. A line of hex is decoded and printed as JSON (by its generated classes:
// its decodePayload gives no value of metrics without a data type, as data messages have them); a line of JSON is encoded.
const tahu = require('sparkplug-payload').get('spBv1.0')
const { Payload } = require('sparkplug-payload/lib/sparkplugPayloadProto').org.eclipse.tahu.protobuf
for (const line of require('fs').readFileSync(0, 'utf8').trim().split('\n')) {
  console.log(line.startsWith('{')
    ? Buffer.from(tahu.encodePayload(JSON.parse(line))).toString('hex')
    : JSON.stringify(Payload.toObject(Payload.decode(Buffer.from(line, 'hex')), { longs: Number })))
}
