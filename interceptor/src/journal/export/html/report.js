// Finds entries by words and by what became of them. Without it all are there.
"use strict";
const search = document.getElementById("search");
const totals = document.getElementById("totals");
const entries = [...document.querySelectorAll(".entry")];
const sections = [...document.querySelectorAll("main > section")];
let texts = null;

function filter() {
  const words = search.words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const which = search.which.value;
  // Made once, when it is first needed: opening a large report stays quick.
  texts ||= entries.map((entry) => (entry.closest("section").querySelector("header").textContent + " " + entry.textContent).toLowerCase());
  let found = 0;
  entries.forEach((entry, index) => {
    const fits = (!which || entry.classList.contains(which)) && words.every((word) => texts[index].includes(word));
    entry.hidden = !fits;
    found += fits;
  });
  const all = !which && words.length === 0;
  for (const section of sections) section.hidden = !all && !section.querySelector(".entry:not([hidden])");
  search.found.value = all ? "" : `${found} of ${entries.length} entries`;
}

if (search) {
  search.hidden = false;
  search.after(totals);
  let later = 0;
  search.addEventListener("input", () => {
    clearTimeout(later);
    later = setTimeout(filter, 120);
  });
  search.addEventListener("submit", (event) => event.preventDefault());
}
// What is folded is printed as well.
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details:not([open])")) {
    fold.open = true;
    fold.dataset.folded = "";
  }
});
addEventListener("afterprint", () => {
  for (const fold of document.querySelectorAll("details[data-folded]")) {
    fold.open = false;
    delete fold.dataset.folded;
  }
});
