// Node-RED for the flow beside this file: node_modules/.bin/node-red --settings settings.js --userDir .
module.exports = {
    flowFile: "flows.json",
    uiHost: process.env.HOST || "127.0.0.1", // there is no login here: see Security in docs/node-red.md
    uiPort: process.env.PORT || 1880,
    credentialSecret: process.env.CREDENTIAL_SECRET || false,
    // Nothing goes out: no telemetry, no question about updates, no catalogue of nodes.
    telemetry: { enabled: false, updateNotification: false },
    externalModules: { autoInstall: false, palette: { allowInstall: false }, modules: { allowInstall: false } },
    editorTheme: { tours: false, palette: { catalogues: [] } },
    logging: { console: { level: "info" } },
};
