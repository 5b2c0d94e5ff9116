// The report of an export in a browser: `report.js FILE FOLDER`. Pictures and a print of it go to FOLDER. Prints `ok`.
"use strict";
const assert = require("node:assert/strict");
const { run } = require("./browser.js");

const [file, folder] = process.argv.slice(2);

async function look(page) {
  const asked = [];
  page.on("request", (request) => asked.push(request.url()));
  page.on("dialog", () => page.problems.push("a dialog opened"));
  await page.goto("file://" + file);
  assert.deepEqual(asked, ["file://" + file], "it asks for nothing else");
}

const ways = {
  async light(page) {
    await look(page);
    const shown = () => page.locator(".entry:visible").count();
    const all = await shown();
    assert.ok(all > 5, `${all} entries`);
    // What agents wrote is seen and does nothing.
    assert.equal(await page.locator("script").count(), 1);
    assert.equal(await page.locator("img, iframe, object, [onerror], [onclick]").count(), 0);
    const whole = await page.evaluate(() => document.body.innerText + document.title);
    assert.match(whole, /<script>alert\(1\)<\/script>/);
    assert.match(whole, /\\u\{202e\}/);
    assert.doesNotMatch(whole, /[\u0000-\u0008\u000b-\u001f\u007f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/);
    await page.screenshot({ path: `${folder}/report-light.png`, fullPage: true });
    // By words, and by what became of it.
    await page.getByLabel("Search").fill("shop.customers SELECT");
    await page.waitForFunction(() => document.querySelector("output").value);
    const found = await shown();
    assert.ok(found > 0 && found < all, `${found} of ${all}`);
    await page.getByLabel("Search").fill("");
    await page.getByLabel("Show").selectOption("deny");
    await page.waitForFunction((before) => document.querySelectorAll(".entry:not([hidden])").length !== before, found);
    assert.ok((await shown()) > 0);
    for (const entry of await page.locator(".entry:visible").all()) assert.match(await entry.getAttribute("class"), /deny/);
    await page.screenshot({ path: `${folder}/report-denied.png` });
    await page.getByLabel("Show").selectOption("");
    await page.waitForFunction((all) => document.querySelectorAll(".entry:not([hidden])").length === all, all);
    await page.pdf({ path: `${folder}/report.pdf`, format: "A4", printBackground: true });
  },
  async dark(page) {
    await look(page);
    await page.screenshot({ path: `${folder}/report-dark.png`, fullPage: true });
  },
  async phone(page) {
    await look(page);
    await page.screenshot({ path: `${folder}/report-phone.png` });
    const wide = await page.evaluate(() => [...document.querySelectorAll("main *")].filter((each) => !each.closest(".scroll") && each.getBoundingClientRect().right > innerWidth).map((each) => each.outerHTML.slice(0, 200)));
    assert.deepEqual(wide, [], "it is too wide");
  },
  // Without scripts all of it is there.
  async plain(page) {
    await look(page);
    assert.ok((await page.locator(".entry:visible").count()) > 5);
    assert.equal(await page.locator("#search:visible").count(), 0);
    assert.equal(await page.locator("#totals:visible").count(), 1);
  },
};

run(async (person) => {
  const wide = { viewport: { width: 1280, height: 860 } };
  const looks = { light: { ...wide, colorScheme: "light" }, dark: { ...wide, colorScheme: "dark" }, phone: { viewport: { width: 390, height: 844 } }, plain: { ...wide, javaScriptEnabled: false } };
  for (const [look, options] of Object.entries(looks)) await ways[look](await person(options));
});
