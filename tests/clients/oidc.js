// OpenID providers for the tests of the console. `serve PORT CONSOLE`: a real one. `hostile PORT CONSOLE`: one that
// lies in every way of a table, each of which has to be refused; prints a line each.
"use strict";
const assert = require("node:assert/strict");
const http = require("node:http");
const crypto = require("node:crypto");
const [mode, port, console_] = process.argv.slice(2);
const issuer = "http://localhost:" + port;

const serve = async () => {
  const { Provider } = await import(require.resolve("oidc-provider").replace(/\\/g, "/"));
  const provider = new (Provider ?? (await import(require.resolve("oidc-provider"))).default)(issuer, {
    clients: [{ client_id: "console", client_secret: "of-the-client", redirect_uris: [console_ + "/sign-in/callback"], post_logout_redirect_uris: [console_ + "/sign-in"], grant_types: ["authorization_code"] }],
    claims: { openid: ["sub"], profile: ["groups"], email: ["email", "email_verified"] },
    pkce: { required: () => true },
    cookies: { keys: ["a-key-of-the-tests"] },
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, email: id + "@example.com", email_verified: id !== "mallory", groups: id === "carol" ? ["dba"] : ["staff"] }) }),
  });
  provider.on("server_error", (_, error) => console.error(error));
  provider.listen(Number(port), "127.0.0.1", () => console.log("ready"));
};

// A provider that says what a case has it say.
const hostile = async () => {
  const pair = crypto.generateKeyPairSync("rsa", { modulusLength: 2048 });
  const other = crypto.generateKeyPairSync("rsa", { modulusLength: 2048 });
  const jwk = { ...pair.publicKey.export({ format: "jwk" }), kid: "one", use: "sig", alg: "RS256" };
  const encode = (value) => Buffer.from(typeof value === "string" ? value : JSON.stringify(value)).toString("base64url");
  const sign = (head, claims, key = pair.privateKey) => {
    const text = encode(head) + "." + encode(claims);
    if (head.alg === "none") return text + ".";
    if (head.alg === "HS256") return text + "." + crypto.createHmac("sha256", key).update(text).digest("base64url");
    return text + "." + crypto.sign("sha256", Buffer.from(text), key).toString("base64url");
  };
  const now = () => Math.floor(Date.now() / 1000);
  let lie = {}, asked = {}, used = new Set();
  const server = http.createServer((request, response) => {
    const { pathname, searchParams } = new URL(request.url, issuer);
    const json = (value, status = 200) => { response.writeHead(status, { "content-type": "application/json" }); response.end(JSON.stringify(value)); };
    if (pathname === "/.well-known/openid-configuration") return json({ issuer: lie.metadata ?? issuer, authorization_endpoint: issuer + "/auth", token_endpoint: issuer + "/token", userinfo_endpoint: issuer + "/me", jwks_uri: issuer + "/jwks", response_types_supported: ["code"], subject_types_supported: ["public"], id_token_signing_alg_values_supported: ["RS256", "HS256", "none"] });
    if (pathname === "/jwks") return json({ keys: [jwk] });
    if (pathname === "/me") return json({ sub: lie.userinfo ?? "1", email: "eve@example.com", email_verified: true, groups: ["on-call"] });
    if (pathname === "/token") {
      let body = "";
      request.on("data", (data) => (body += data));
      request.on("end", () => {
        const form = new URLSearchParams(body);
        const challenge = crypto.createHash("sha256").update(form.get("code_verifier") ?? "").digest("base64url");
        if (challenge !== asked.challenge) return json({ error: "invalid_grant", error_description: "PKCE" }, 400);
        if (used.has(form.get("code"))) return json({ error: "invalid_grant" }, 400);
        used.add(form.get("code"));
        const claims = { iss: issuer, aud: "console", sub: "1", iat: now(), exp: now() + 300, nonce: asked.nonce, ...(lie.noClaims ? {} : { email: "eve@example.com", email_verified: true, groups: ["on-call"] }), ...lie.claims };
        const token = lie.token ? lie.token(claims) : sign({ alg: "RS256", kid: "one" }, claims);
        json({ access_token: "a", token_type: "Bearer", expires_in: 300, ...(lie.noToken ? {} : { id_token: token }) });
      });
      return;
    }
    json({ error: pathname, searchParams: String(searchParams) }, 404);
  });
  await new Promise((done) => server.listen(Number(port), "127.0.0.1", done));

  const get = (path, cookie) => fetch(console_ + path, { redirect: "manual", headers: cookie ? { cookie } : {} });
  const cookies = (answer) => answer.headers.getSetCookie().map((cookie) => cookie.split(";")[0]);
  const set_out = async () => {
    const answer = await get("/sign-in/oidc?next=/sessions");
    assert.equal(answer.status, 303, await answer.text());
    const query = new URL(answer.headers.get("location")).searchParams;
    assert.equal(query.get("code_challenge_method"), "S256");
    asked = { nonce: query.get("nonce"), challenge: query.get("code_challenge"), state: query.get("state") };
    return cookies(answer).find((cookie) => cookie.startsWith("interceptor-flow="));
  };
  let codes = 0;
  const back = async (flow, { state = asked.state, code = "code" + ++codes, extra = "" } = {}) => get("/sign-in/callback?state=" + state + "&code=" + code + extra, flow);
  const is_in = (answer) => cookies(answer).some((cookie) => /^interceptor=./.test(cookie));
  const table = {
    "all is as it should be": { fine: true },
    "claims come from the user-info endpoint": { fine: true, lie: { noClaims: true } },
    "another nonce": { lie: { claims: { nonce: "another" } } },
    "no nonce": { lie: { claims: { nonce: undefined } } },
    "another issuer": { lie: { claims: { iss: "http://evil.example" } } },
    "another audience": { lie: { claims: { aud: "someone-else" } } },
    "more audiences than ours": { lie: { claims: { aud: ["console", "someone-else"] } } },
    "expired": { lie: { claims: { exp: now() - 300, iat: now() - 600 } } },
    "algorithm none": { lie: { token: (claims) => sign({ alg: "none" }, claims) } },
    "HS256 by the client's secret": { lie: { token: (claims) => sign({ alg: "HS256" }, claims, "of-the-client") } },
    "HS256 by the public key": { lie: { token: (claims) => sign({ alg: "HS256", kid: "one" }, claims, pair.publicKey.export({ type: "spki", format: "pem" })) } },
    "another key under the same name": { lie: { token: (claims) => sign({ alg: "RS256", kid: "one" }, claims, other.privateKey) } },
    "a key that isn't published": { lie: { token: (claims) => sign({ alg: "RS256", kid: "two" }, claims, other.privateKey) } },
    "a token that was changed": { lie: { token: (claims) => { const [head, , signature] = sign({ alg: "RS256", kid: "one" }, claims).split("."); return [head, encode({ ...claims, email: "root@example.com" }), signature].join("."); } } },
    "no ID token": { lie: { noToken: true } },
    "user info of another subject": { lie: { noClaims: true, userinfo: "2" } },
    "an address that isn't verified": { lie: { claims: { email_verified: false } } },
    "an address that nobody says is verified": { lie: { claims: { email_verified: undefined }, userinfo: "1" } },
    "a name with a line break": { lie: { claims: { email: "a@b\nroot" } } },
    "metadata of another issuer": { lie: { metadata: "http://evil.example" }, no_start: true },
    "a state that nobody was given": { way: (flow) => back(flow, { state: "made-up" }) },
    "the state of another browser": { way: async () => { const mine = await set_out(); const state = asked.state; await set_out(); return back(mine, { state: asked.state }).then((answer) => (assert.notEqual(state, asked.state), answer)); } },
    "no cookie of a browser that set out": { way: () => back(undefined) },
    "a code that was used": { way: async (flow) => { assert.ok(is_in(await back(flow, { code: "again" }))); const next = await set_out(); return back(next, { code: "again" }); } },
    "a callback that was used": { way: async (flow) => { const state = asked.state; assert.ok(is_in(await back(flow))); return back(flow, { state }); } },
    "another PKCE challenge than was sent": { way: (flow) => { asked.challenge = "another"; return back(flow); } },
    "an answer in another provider's name": { way: (flow) => back(flow, { extra: "&iss=http%3A%2F%2Fevil.example" }) },
    "a refusal": { way: (flow) => back(flow, { extra: "&error=access_denied&error_description=%3Cscript%3E" }) },
    "somebody without a role": { lie: { claims: { groups: ["guests"] } } },
    "a role by a claim's shape": { lie: { claims: { groups: { "on-call": true } } } },
  };
  for (const [what, { fine = false, lie: lies = {}, way, no_start = false }] of Object.entries(table)) {
    lie = no_start ? {} : lies;
    let flow;
    flow = await set_out();
    lie = lies;
    const answer = way ? await way(flow) : await back(flow);
    const text = await answer.text();
    assert.equal(is_in(answer), fine, what + ": " + answer.status + " " + text.replace(/<[^>]*>/g, " ").replace(/\s+/g, " "));
    assert.equal(answer.status, fine ? 303 : 403, what + " " + text);
    if (fine) assert.equal(answer.headers.get("location"), "/sessions");
    assert.doesNotMatch(text, /<script>/);
    console.log((fine ? "let in   " : "refused  ") + what);
  }
  // A cookie that somebody brings along is nobody's, before and after signing in (session fixation).
  lie = {};
  const flow = await set_out();
  const fixed = await back(flow + "; interceptor=fixed");
  const own = cookies(fixed).find((cookie) => cookie.startsWith("interceptor="));
  assert.notEqual(own, "interceptor=fixed");
  assert.equal((await get("/approvals", "interceptor=fixed")).status, 303);
  assert.equal((await get("/approvals", own)).status, 200);
  console.log("refused  a session that was there before");
  server.close();
  console.log("ok");
};

(mode === "serve" ? serve() : hostile()).catch((error) => {
  console.error(error);
  process.exit(1);
});
