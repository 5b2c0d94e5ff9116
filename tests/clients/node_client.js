// node-postgres as people use it. Prints what it sees; knows nothing of interceptor.
// Usage: node node_client.js MODE, with libpq's environment variables.
const { Client, Pool } = require("pg");

const say = (...values) => console.log(...values.map((v) => (typeof v === "string" ? v : JSON.stringify(v))));

const modes = {
  // Simple and extended queries, a named statement, binary results.
  async queries(client) {
    say((await client.query("SELECT id, name, tags, profile FROM shop.customers ORDER BY id")).rows);
    say((await client.query("SELECT 1 AS one; SELECT 2 AS two")).map((result) => result.rows));
    say((await client.query("SELECT $1::int + 1 AS n, $2::text AS t, $3::jsonb AS j", [41, "hé", { a: 1 }])).rows);
    for (const id of [2, 3, 4]) {
      const named = { name: "word", text: "SELECT word FROM plain WHERE id = $1", values: [id] };
      say((await client.query(named)).rows);
    }
    say((await client.query({ text: "SELECT id FROM plain WHERE id < $1", values: [4], rowMode: "array", binary: true })).rows);
    say((await client.query("UPDATE plain SET word = $1 WHERE id = $2 RETURNING *", ["new", 5])).rows);
  },
  // Errors leave the connection as it was.
  async errors(client) {
    for (const [text, values] of [["SELECT 1/0"], ["SELECT 1/$1::int", [0]], ["SELECT nonsense"], ["SELEC"]]) {
      await client.query(text, values).catch((error) => say("error", error.code));
    }
    await client.query("BEGIN");
    await client.query("INSERT INTO plain VALUES (1, 'twice')").catch((error) => say("error", error.code));
    await client.query("SELECT 1").catch((error) => say("error", error.code));
    await client.query("ROLLBACK");
    say((await client.query("SELECT 'still here' AS here")).rows);
  },
  // Queries queued without waiting for one another; notifications.
  async queued(client) {
    const results = await Promise.all([...Array(50).keys()].map((n) => client.query("SELECT $1::int AS n", [n])));
    say(results.map((result) => result.rows[0].n));
    const ding = new Promise((resolve) => client.on("notification", (message) => resolve(message.payload)));
    await client.query("LISTEN bell");
    await client.query("NOTIFY bell, 'ding'");
    say(await ding);
  },
  // A pool of connections at once.
  async pool() {
    const pool = new Pool({ max: 8 });
    const rows = await Promise.all(
      [...Array(64).keys()].map((n) => pool.query("SELECT word FROM plain WHERE id = $1", [n + 2])),
    );
    say(rows.map((result) => result.rows[0].word).length);
    await pool.end();
  },
};

(async () => {
  const client = new Client();
  await client.connect();
  await modes[process.argv[2]](client);
  await client.end();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
