const ms = require("ms");
const semver = require("semver");

console.log(`version ${semver.major("@VERSION@")}, ${ms("2 days")} ms, uid ${process.getuid()}`);
