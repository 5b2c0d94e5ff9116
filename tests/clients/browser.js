// A browser for the tests of the console: opens it, signs in, and does what the steps on its command line say.
"use strict";
const assert = require("node:assert/strict");
const { chromium } = require("playwright-core");

const ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

exports.open = async (options = {}) => {
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ARGUMENTS, headless: true });
  const people = [];
  const person = async (more = {}) => {
    const context = await browser.newContext({ ...options, ...more });
    context.setDefaultTimeout(20000);
    const page = await context.newPage();
    page.problems = [];
    page.on("console", (message) => message.type() === "error" && page.problems.push(message.text()));
    page.on("pageerror", (error) => page.problems.push(String(error)));
    people.push(page);
    return page;
  };
  return { browser, person, people };
};

exports.password = async (page, url, name, password) => {
  await page.goto(url + "/sign-in");
  await page.fill("#name", name);
  await page.fill("#password", password);
  await page.click("button.yes");
  await page.waitForURL(url + "/approvals");
};

// Goes `way` with people in a browser of their own, and looks that the pages it gives, or else all, complain of nothing. Prints `ok`.
exports.run = async (way) => {
  try {
    const { browser, person, people } = await exports.open();
    try {
      const pages = (await way(person)) ?? people;
      for (const page of pages) assert.deepEqual(page.problems, [], "the browser complains");
      console.log("ok");
    } finally {
      await browser.close();
    }
  } catch (error) {
    console.error(error);
    process.exit(1);
  }
};
