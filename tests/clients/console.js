// The console in a browser: each of these is a test's way through it. Prints `ok` at the end.
"use strict";
const assert = require("node:assert/strict");
const fs = require("node:fs");
const { password, run } = require("./browser.js");

const [way, url, ...more] = process.argv.slice(2);
const card = (page, text) => page.locator("#pending .card", { hasText: text });

const ways = {
  // Held, shown live, approved with one click.
  async approve(person, [text]) {
    const page = await person();
    await password(page, url, "alice", "correct horse battery");
    await page.waitForSelector("#live.on");
    console.log("watching");
    await card(page, text).getByRole("button", { name: "Approve" }).click();
    await page.locator("#ended .card.allow", { hasText: "approved" }).first().waitFor();
    assert.equal(await card(page, text).count(), 0);
    return [page];
  },
  // Two people, each in their own browser; a yes of one isn't enough, and doesn't count twice.
  async quorum(person, [text]) {
    const [alice, bob] = [await person(), await person()];
    await password(alice, url, "alice", "correct horse battery");
    await password(bob, url, "bob", "correct horse battery");
    await alice.waitForSelector("#live.on");
    console.log("watching");
    await card(alice, text).getByRole("button", { name: "Approve" }).click();
    await card(bob, "1 of 2 agreed").waitFor();
    // There is no button for a second yes, and whoever sends one all the same is refused.
    const own = card(alice, "1 of 2 agreed");
    await own.locator(".why-not", { hasText: "already approved" }).waitFor();
    assert.equal(await own.getByRole("button", { name: "Approve" }).count(), 0);
    assert.equal(await own.getByRole("button", { name: "Take your yes back" }).count(), 1);
    const status = await own.locator("form.vote").evaluate(async (form) => {
      const body = new URLSearchParams(new FormData(form));
      body.set("choice", "approve");
      return (await fetch(form.action, { method: "POST", body, headers: { "x-requested-by": "script" } })).status;
    });
    assert.equal(status, 409);
    assert.equal(await card(bob, text).count(), 1, "it waits for the second");
    await card(bob, text).getByRole("button", { name: "Approve" }).click();
    await alice.locator("#ended .card.allow").first().waitFor();
    alice.problems = alice.problems.filter((problem) => !problem.includes("409"));
    return [alice, bob];
  },
  // What an agent writes does nothing, and is seen as what it is.
  async deception(person, [text]) {
    const page = await person();
    page.on("dialog", () => page.problems.push("a dialog opened"));
    await password(page, url, "alice", "correct horse battery");
    const shown = card(page, text);
    await shown.waitFor();
    const looks = async () => {
      assert.equal(await page.locator("script:not([src])").count(), 0);
      assert.equal(await page.locator("img, iframe, object, [onerror], [onclick]").count(), 0);
      const whole = await page.evaluate(() => document.body.innerText + document.title);
      assert.doesNotMatch(whole, /[\u0000-\u0008\u000b-\u001f\u007f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/);
      assert.match(whole, /\\u\{202e\}/);
      assert.match(whole, /\\u\{1b\}/);
      assert.match(whole, /<script>/);
      assert.match(whole, /only looks? like/);
    };
    await looks();
    // Of what is outside the first view nobody is asked for an answer before they have opened it.
    const long = card(page, "more lines are outside this view");
    assert.equal(await long.getByRole("button", { name: "Approve" }).count(), 0);
    await long.getByRole("link", { name: "Open to answer" }).click();
    await page.locator("summary", { hasText: "Show all" }).click();
    assert.match(await page.locator("details.fold code").innerText(), /DROP TABLE the_end/);
    await page.goBack();
    await shown.locator("h2 a").click();
    await page.waitForURL(/approvals\/[0-9a-f]{16}$/);
    await looks();
    return [page];
  },
  // A security key signs exactly this; without it, or with another's, nothing goes.
  async key(person, [text]) {
    const page = await person();
    const devtools = await page.context().newCDPSession(page);
    await devtools.send("WebAuthn.enable");
    await devtools.send("WebAuthn.addVirtualAuthenticator", { options: { protocol: "ctap2", transport: "usb", hasResidentKey: false, hasUserVerification: false, automaticPresenceSimulation: true } });
    await password(page, url, "alice", "correct horse battery");
    await card(page, text).getByRole("link", { name: "Answer with your key" }).click();
    await page.getByRole("button", { name: "Approve" }).click();
    await page.locator("#toast .bad", { hasText: "you have no security key" }).waitFor();
    const question = page.url();
    await page.goto(url + "/account");
    await page.fill("#label", "blue key");
    await page.getByRole("button", { name: "Register" }).click();
    await page.locator(".keys li", { hasText: "blue key" }).waitFor();
    await page.goto(question);
    await page.fill("#reason", "signed off");
    await page.getByRole("button", { name: "Approve" }).click();
    await page.waitForURL(url + "/approvals");
    return [page];
  },
  // Somebody who may only look.
  async viewer(person, [text]) {
    const page = await person();
    await password(page, url, "vera", "correct horse battery");
    await card(page, text).waitFor();
    assert.equal(await page.getByRole("button", { name: /Approve|Deny/ }).count(), 0);
    await page.goto(url + "/agents");
    assert.equal(await page.getByRole("button", { name: /Freeze|Cut/ }).count(), 0);
    // Forms that nobody offered are refused where it counts.
    const csrf = await page.locator("body").getAttribute("data-csrf");
    for (const [path, fields] of [["/agents/deeds", { agent: "held", deed: "freeze" }], ["/policy/reload", {}]]) {
      const answer = await page.request.post(url + path, { form: { csrf, ...fields }, headers: { "x-requested-by": "script", origin: url } });
      assert.equal(answer.status(), 403, path);
    }
    return [page];
  },
  // The kill switch.
  async freeze(person, [agent]) {
    const page = await person();
    await password(page, url, "otto", "correct horse battery");
    await page.goto(url + "/agents");
    const row = page.locator(".agents .card", { hasText: agent });
    await row.getByRole("button", { name: "Freeze" }).click();
    await row.locator(".state", { hasText: "frozen" }).waitFor();
    console.log("frozen");
    await row.getByRole("button", { name: "Thaw" }).click();
    await row.locator(".state", { hasText: "running" }).waitFor();
    return [page];
  },
  // By a link of the control socket's, once.
  async link(person, [link]) {
    const [page, thief] = [await person(), await person()];
    await page.goto(link);
    assert.equal(new URL(page.url()).hash, "", "the code stays nowhere");
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.waitForURL(url + "/approvals");
    assert.match(await page.locator(".me").innerText(), /root/);
    await thief.goto(link);
    await thief.getByRole("button", { name: "Sign in" }).click();
    await thief.locator(".alarm", { hasText: "has been used" }).waitFor();
    thief.problems = [];
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByText("You are signed out").waitFor();
    await page.goto(url + "/sessions");
    assert.match(page.url(), /sign-in\?next=%2Fsessions/);
    return [page, thief];
  },
  // Sign-in at an OpenID provider, which asks for a name and then for consent.
  async oidc(person, [name]) {
    const page = await person();
    await page.goto(url + "/sessions");
    await page.getByRole("link", { name: /Sign in with/ }).click();
    await page.fill("[name=login]", name);
    await page.fill("[name=password]", "any");
    await page.getByRole("button", { name: /sign-in/i }).click();
    await page.getByRole("button", { name: /continue/i }).click();
    await page.waitForURL(url + "/sessions");
    console.log(await page.locator(".me").innerText());
    await page.getByRole("button", { name: "Sign out" }).click();
    assert.match(await page.locator("a.button", { hasText: "Sign out there" }).getAttribute("href"), /session\/end/);
    // The provider's own pages ask the internet for fonts.
    page.problems = [];
    return [page];
  },
  // What keeps people with disabilities from using a page, on every page.
  async axe(person, [paths]) {
    const source = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
    const pages = [];
    for (const options of [{ colorScheme: "light" }, { colorScheme: "dark" }, { viewport: { width: 390, height: 844 }, isMobile: true }]) {
      const page = await person({ ...options, bypassCSP: true });
      const check = async (path) => {
        await page.addScriptTag({ content: source });
        const { violations } = await page.evaluate(() => axe.run());
        const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
        const found = serious.map(({ id, nodes }) => id + ": " + nodes.map(({ html, failureSummary }) => html.slice(0, 200) + " " + failureSummary).join("; "));
        assert.deepEqual(found, [], path + " " + JSON.stringify(options));
      };
      await page.goto(url + "/sign-in");
      await check("/sign-in");
      await password(page, url, "alice", "correct horse battery");
      for (const path of paths.split(",")) {
        await page.goto(url + path);
        await page.waitForTimeout(300);
        await check(path);
      }
      pages.push(page);
    }
    return pages;
  },
  // By the keyboard alone.
  async keyboard(person, [text]) {
    const page = await person();
    await password(page, url, "alice", "correct horse battery");
    await card(page, text).waitFor();
    await page.keyboard.press("Tab");
    assert.match(await page.evaluate(() => document.activeElement.textContent), /Skip to content/);
    await page.keyboard.press("j");
    await page.keyboard.press("d");
    await page.locator("#ended .card.deny").first().waitFor();
    return [page];
  },
  // Pictures of every page: light, dark and on a phone.
  async pictures(person, [folder, paths]) {
    const wide = { viewport: { width: 1280, height: 860 } };
    const looks = { light: { ...wide, colorScheme: "light" }, dark: { ...wide, colorScheme: "dark" }, phone: { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true } };
    const pages = [];
    for (const [look, options] of Object.entries(looks)) {
      const page = await person(options);
      const take = (name) => page.screenshot({ path: `${folder}/${name}-${look}.png`, fullPage: true });
      await page.goto(url + "/sign-in");
      await take("sign-in");
      await password(page, url, "alice", "correct horse battery");
      for (const path of paths.split(",")) {
        await page.goto(url + path);
        await page.waitForTimeout(300);
        await take(path.split("/")[1] + (path.split("/")[2] ? "-one" : ""));
      }
      pages.push(page);
    }
    return pages;
  },
};

run((person) => ways[way](person, more));
