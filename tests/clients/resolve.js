// Looks names up with c-ares, and with the C library.
const dns = require("dns");

(async () => {
  for (const name of process.argv.slice(2)) {
    for (const look of [dns.promises.resolve4, (name) => dns.promises.lookup(name, { family: 4 }).then((found) => [found.address])]) {
      try {
        console.log(name, ...(await look(name)));
      } catch (error) {
        console.log(name, error.code);
      }
    }
  }
})();
